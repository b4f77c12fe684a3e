#!/bin/bash
# A PV guest with two qcow2 disks and a raw one: internal snapshots, external ones, and both in one
# transaction, which is reverted to twice. Bases never change.
# core
. /lab/t/lib.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
raw c.img 64M
guest_up g tick=300 a.qcow2 b.qcow2 \
	"format=raw,vdev=xvdc,access=rw,backendtype=qdisk,target=$LAB_WORK/c.img"
wait_tick g 3
# The default is live; Xen decides whether it can be for a PV guest.
create_then_revert_twice g mixed.xlsave --name mixed
[[ $(json live <mixed.xlsave.json) == false ]] || fail "Debian's Xen cannot save a PV guest live"
base=$(sha256sum c.img)
# xvdc has a qcow2 overlay by now.
create g internal.xlsave --name internal --no-live -d xvdc,internal
revert g internal.xlsave
create g external.xlsave --name external --no-live -d xvda,external -d xvdb,external -d xvdc,external
bases=$(sha256sum a.qcow2 b.qcow2)
revert g external.xlsave
[[ $base == "$(sha256sum c.img)" ]] || fail "the raw base was written to"
[[ $bases == "$(sha256sum a.qcow2 b.qcow2)" ]] || fail "a qcow2 base was written to"
xl-snapshot show mixed.xlsave --json >show.json
[[ $(json revertible <show.json) == true ]] || fail "show says it cannot be reverted to"
xl destroy g
qemu_img_check_all
detail "pause $(for how in mixed internal external; do echo -n "$how $(ms "$(json pause_ms <$how.xlsave.json)") ms "; done)"
