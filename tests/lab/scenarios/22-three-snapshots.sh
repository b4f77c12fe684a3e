#!/bin/bash
# Three snapshots of different kinds on top of each other, reverted to in any order, also when the
# domain is gone. Each survives, and no revert harms another snapshot.
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
guest_up g tick=300 a.qcow2 b.qcow2
wait_tick g 3

# take NAME ARGUMENT...
take() {
	local name=$1
	shift
	create g "$name.xlsave" --name "$name" --no-live "$@"
}
take s1
take s2 -d xvda,external -d xvdb,external
take s3 -d xvdb,external
take s4

back() { revert g "$1.xlsave"; }
back s1
back s3
back s2
xl shutdown g
gone g
back s4
xl-snapshot create g --name s5 --memory s5.xlsave --no-live
for name in s1 s2 s3 s4 s5; do
	xl-snapshot show $name.xlsave --json | grep -q '"revertible": true' || fail "$name was harmed"
done
xl destroy g
qemu_img_check_all
detail "s1 internal, s2 external, s3 mixed, s4 internal on the overlays, s5 a branch"
