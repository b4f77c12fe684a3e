#!/bin/bash
# External snapshots of qcow2 disks and a raw one of a PV guest; two reverts to each.
# timeout: 300
. /lab/t/lib.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
raw c.img 64M
disks=(-d xvda,external -d xvdb,external -d xvdc,external)
guest_up g tick=500 a.qcow2 b.qcow2 \
	"format=raw,vdev=xvdc,access=rw,backendtype=qdisk,target=$LAB_WORK/c.img"
wait_tick g 3
base=$(sha256sum a.qcow2 b.qcow2 c.img | cut -c 1-64)
create_then_revert_twice g s1.xlsave --name s1 --no-live "${disks[@]}"
[[ $base != "$(sha256sum a.qcow2 b.qcow2 c.img | cut -c 1-64)" ]] || fail "the guest wrote nothing"
base=$(sha256sum a.qcow2 b.qcow2 c.img)
create_then_revert_twice g s2.xlsave --name s2 "${disks[@]}"
[[ $base == "$(sha256sum a.qcow2 b.qcow2 c.img)" ]] || fail "a base was written to"
xl destroy g
qemu_img_check_all
detail "PV, qcow2 and raw, pause $(ms "$(json pause_ms <s1.xlsave.json)") ms not live"
