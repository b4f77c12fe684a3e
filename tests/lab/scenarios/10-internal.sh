#!/bin/bash
# Internal snapshots of three qcow2 disks of a PV guest; two reverts to each.
# timeout: 300
. /lab/t/lib.sh

for disk in a b c; do qcow2 $disk.qcow2 64M; done
guest_up g tick=500 a.qcow2 b.qcow2 c.qcow2
wait_tick g 3
create_then_revert_twice g s1.xlsave --name s1 --no-live
# The default is live; Xen decides whether it can be for a PV guest.
create_then_revert_twice g s2.xlsave --name s2
xl destroy g
qemu_img_check_all
detail "PV, pause $(ms "$(json pause_ms <s1.xlsave.json)") ms not live, $(ms "$(json pause_ms <s2.xlsave.json)") ms as Xen allows (live: $(json live <s2.xlsave.json))"
