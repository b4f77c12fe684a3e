#!/bin/bash
# Internal and external snapshots in one transaction, one disk left out; two reverts to each.
# timeout: 300
. /lab/t/lib.sh

for disk in a b d; do qcow2 $disk.qcow2 64M; done
raw c.img 64M
guest_up g tick=500 a.qcow2 b.qcow2 \
	"format=raw,vdev=xvdc,access=rw,backendtype=qdisk,target=$LAB_WORK/c.img" \
	"format=qcow2,vdev=xvdd,access=ro,target=$LAB_WORK/d.qcow2"
wait_tick g 3
create_then_revert_twice g s1.xlsave --name s1 --no-live -d xvdb,external
create_then_revert_twice g s2.xlsave --name s2 -d xvda,external
xl-snapshot show s2.xlsave --json >show.json
[[ $(json revertible <show.json) == true ]] || fail "show says it cannot be reverted to"
xl destroy g
qemu_img_check_all
detail "PV: qcow2 internal + qcow2 external + raw external"
