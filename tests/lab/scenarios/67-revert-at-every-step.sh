#!/bin/bash
# Each step of a revert fails once, after it has done its work, and the program is killed once after each. All
# disks are QEMU's alone, so that they are put back while libxl still destroys the domain. The snapshot is
# never harmed, and a repeated revert brings the guest back.
# timeout: 1800
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
guest_up g type=pv mem=96 tick=300 a.qcow2 b.qcow2
wait_tick g 3
create g s1.xlsave --name s1 --no-live

# What was kept of earlier contents.
kept() { qemu-img snapshot -U -l a.qcow2 | grep -c before-revert || :; }

revert_at_every_step
xl destroy g
qemu_img_check_all
detail "$failed steps failed, after $killed the program was killed; each time a revert brought the guest back"
