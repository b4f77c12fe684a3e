#!/bin/bash
# delete in every way: first, middle, last and current snapshots of a running guest, external, internal and mixed, siblings,
# a clone, without memory, killed and finished, and of a domain that does not run. The guest runs on, and every
# other snapshot goes back to its moment.
# slow
. /lab/t/lib.sh
. /lab/t/gold.sh
. /lab/t/kept.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
guest_up g tick=300 mem=96 a.qcow2 b.qcow2
wait_tick g 2
for name in s1 s2 s3 s4 s5; do take $name -d xvda,external -d xvdb,external; done
good s1 s2 s3 s4 s5

# ---- a plan changes nothing

before=$(stand g)
xl-snapshot delete --dry-run g/s3 >plan.out
grep -Eq 'stream|commit' plan.out || fail "no merge: $(<plan.out)"
[[ $(stand g) == "$before" ]] || fail "a dry run has changed something"

# ---- middle, first, current

remove s3
good s1 s2 s4 s5
remove s1
[[ -e a.qcow2 ]] || fail "the user's own image is gone"
good s2 s4 s5
remove s5
good s2 s4
revert g kept/g/s4.xlsave --discard-current
good s2 s4
# Configured as it runs.
boot=$(boot_id g)
mark g
xl reboot g
wait_line g '^BOOT ' 90
more_ticks g 2
not_torn g
[[ $(boot_id g) != "$boot" ]] || fail "it did not reboot"
revert g kept/g/s2.xlsave

# ---- siblings, and a clone

take s6 -d xvda,external -d xvdb,external
refused 3 'is the base of' xl-snapshot delete g/s2
good s2 s4 s6
xl-snapshot revert -q g/s6 --as k --overlay-dir new >k.out
more_ticks k 2 120
refused 3 'is the base of' xl-snapshot delete g/s6
remove s6 --flatten
lab_mark[k]=0
more_ticks k 2
not_torn k
xl destroy k
good s2 s4

# ---- internal and mixed, running

take i1
take m1 -d xvdb,external
take i2
# In an overlay, it forbids a merge; in a base of the running guest, QEMU does not delete it.
refused 3 'internal snapshots' xl-snapshot delete g/m1
refused 3 'images whose base is' xl-snapshot delete g/i1
remove i2
remove m1
remove i1
good s2 s4

# ---- without memory

take n1 -d xvda,external -d xvdb,external
xl-snapshot delete --memory-only g/n1 >delete.out
[[ ! -e kept/g/n1.xlsave && -e kept/g/n1.record ]] || fail "$(ls kept/g)"
good n1 s2 s4

# ---- killed, and finished

take v1 -d xvda,external -d xvdb,external
take v2 -d xvda,external -d xvdb,external
mark g
for delay in 0.4 0.9; do
	[[ -e kept/g/v1.xlsave || -e kept/g/v1.xlsave.deleting ]] || break
	xl-snapshot delete g/v1 >killed.out 2>&1 &
	pid=$!
	lab_pause $delay
	kill -KILL $pid 2>/dev/null || :
	wait $pid || :
	pkill -KILL xl-snap-guard || :
	for ((i = 0; i < 100; i++)); do pgrep xl-snap-guard >/dev/null || break; lab_pause; done
	kill -CONT "$(xl_monitor_pid g)"
	more_ticks g 1
done
if [[ -e kept/g/v1.xlsave.deleting ]]; then
	refused 3 'half deleted' xl-snapshot revert kept/g/v1.xlsave
	xl-snapshot list g >table.out
	grep -q '^deleting: .*v1' table.out || fail "$(<table.out)"
fi
[[ ! -e kept/g/v1.xlsave && ! -e kept/g/v1.xlsave.deleting ]] || xl-snapshot delete g/v1 >delete.out
more_ticks g 2
not_torn g
good n1 s2 s4 v2
mv kept/g/v2.xlsave kept/g/v2.xlsave.deleting
refused 3 'half deleted' xl-snapshot revert kept/g/v2.xlsave
remove v2
good n1 s2 s4

# ---- several at once: what is refused does not stop the others

take w1 -d xvda,external -d xvdb,external
expect_exit 4 xl-snapshot delete g/none g/w1 >delete.out 2>errors.out
good n1 s2 s4
more_ticks g 2
not_torn g

# ---- a domain that does not run

take o1
take o2 -d xvda,external -d xvdb,external
disks=$(for vdev in xvda xvdb; do printf '"format=qcow2,vdev=%s,access=rw,target=%s",' $vdev "$(image_of g $vdev)"; done)
xl destroy g
gone g
# The base has a snapshot inside, so that only a commit is left; but it is not known who names the overlay.
refused 3 'it is not known who names the overlay' xl-snapshot delete g/o2
sed "s|^disk = .*|disk = [${disks%,}]|" g.cfg >/etc/xen/g.cfg
xl-snapshot delete -v g/o2 >delete.out
grep -q 'commit' delete.out || fail "$(<delete.out)"
xl-snapshot delete -v g/o1 >delete.out
good n1 s2 s4
qemu_img_check_all
mark g
xl create -q /etc/xen/g.cfg
wait_line g '^BOOT ' 90
more_ticks g 2
not_torn g
xl destroy g
gone g
rm /etc/xen/g.cfg*
mark g
xl-snapshot revert -v g/s4
went_back g kept/g/s4.xlsave
mark g
xl-snapshot revert -v g/s2
went_back g kept/g/s2.xlsave
xl destroy g
gone g
qemu_img_check_all
detail "first, middle, current, siblings, a clone, inside, killed, without memory, off: $(ls kept/g | wc -l) left, all good"
