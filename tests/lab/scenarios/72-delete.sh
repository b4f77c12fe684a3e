#!/bin/bash
# delete: in the middle of a chain of a running guest, killed and finished, the current one, and of a domain that does
# not run. The guest runs on, and the snapshots that are left go back to their moments. 75 has all the other ways.
. /lab/t/lib.sh
. /lab/t/kept.sh

qcow2 a.qcow2 32M
qcow2 b.qcow2 32M
guest_up g tick=300 mem=96 a.qcow2 b.qcow2
wait_tick g 2
for name in s1 s2 s3; do take $name -d xvda,external -d xvdb,external; done
take i1

before=$(stand g)
xl-snapshot delete --dry-run g/s2 >plan.out
grep -Eq 'stream|commit' plan.out || fail "no merge: $(<plan.out)"
[[ $(stand g) == "$before" ]] || fail "a dry run has changed something"
remove i1
remove s2
good s1 s3

# Killed with its guard, and finished.
mark g
xl-snapshot delete g/s3 >killed.out 2>&1 &
pid=$!
lab_pause 0.5
kill -KILL $pid 2>/dev/null || :
wait $pid || :
pkill -KILL xl-snap-guard || :
for ((i = 0; i < 100; i++)); do pgrep xl-snap-guard >/dev/null || break; lab_pause; done
kill -CONT "$(xl_monitor_pid g)"
more_ticks g 1
[[ ! -e kept/g/s3.xlsave && ! -e kept/g/s3.xlsave.deleting ]] || remove s3
good s1

take o1 -d xvda,external -d xvdb,external
disks=$(for vdev in xvda xvdb; do printf '"format=qcow2,vdev=%s,access=rw,target=%s",' $vdev "$(image_of g $vdev)"; done)
xl destroy g
gone g
sed "s|^disk = .*|disk = [${disks%,}]|" g.cfg >/etc/xen/g.cfg
xl-snapshot delete -v g/o1 >delete.out
grep -Eq 'commit|stream' delete.out || fail "$(<delete.out)"
good s1
rm /etc/xen/g.cfg*
mark g
xl-snapshot revert -v g/s1
went_back g kept/g/s1.xlsave
xl destroy g
gone g
qemu_img_check_all
detail "middle, inside, killed and finished, off; the one that is left goes back"
