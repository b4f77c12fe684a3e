#!/bin/bash
# Live snapshots, of a PVH guest: Xen can track its writes. One whose pause is longer than it may be, or whose
# guest ends meanwhile, is given up.
# slow
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 64M; done
raw c.img 64M
guest_up g type=pvh tick=300 a.qcow2 b.qcow2 \
	"format=raw,vdev=xvdc,access=rw,backendtype=qdisk,target=$LAB_WORK/c.img"
wait_tick g 3
refused 1 'was paused for longer than 0.01 s' \
	xl-snapshot create g --name s0 --memory s0.xlsave --live -d xvda,external --max-pause 0.01
[[ -z $(ls | grep -e s0) ]] || fail "something is left: $(ls)"
more_ticks g 3
not_torn g
pauses=
for how in internal external mixed; do
	case $how in
	internal) disks=(-d xvda,internal -d xvdb,internal) ;;
	external) disks=(-d xvda,external -d xvdb,external) ;;
	mixed) disks=(-d xvda,internal -d xvdb,external) ;;
	esac
	create_then_revert_twice g $how.xlsave --name "$how" --live "${disks[@]}"
	[[ $(json live <$how.xlsave.json) == true ]] || fail "$how was not live"
	pauses+=" $how $(ms "$(json pause_ms <$how.xlsave.json)") ms"
done
# One that switches itself off is not waited for, as libxl would for a minute.
xl-snapshot create g --name s9 --memory s9.xlsave --live -d xvda,external 2>errors &
until [[ -s s9.xlsave.partial ]]; do lab_pause 0.05; done
xl shutdown g
from=$SECONDS rc=0
wait $! || rc=$?
cat errors >&2
((rc == 1 && SECONDS - from < 30)) || fail "exit status $rc after $((SECONDS - from)) s"
grep -q 'switched itself off while its memory was saved' errors || fail "the error does not name the cause"
gone g
[[ -z $(ls | grep -e s9) ]] || fail "something is left: $(ls)"
qemu_img_check_all
detail "PVH, pause$pauses"
