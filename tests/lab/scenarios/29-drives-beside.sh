#!/bin/bash
# A drive that QEMU has beside the disks of the configuration: the guest may write to it, and nothing of it
# would be in the snapshot. Refused, with its name, whether the domain runs or not, until it is left out.
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 32M
raw beside.img 1M
guest_up g tick=300 "cfg=device_model_args = ['-drive', 'if=none,id=beside,format=raw,file=$LAB_WORK/beside.img']" a.qcow2
wait_tick g 2
before=$(stand g)
refused 3 "Drive beside ($LAB_WORK/beside.img) of g" xl-snapshot create g --name s1 --memory s1.xlsave --no-live
refused 3 'leave it out with --disk beside,none' xl-snapshot create g --name s1 --memory s1.xlsave --no-live -d xvda,external
refused 2 'is not the name of a disk' xl-snapshot create g --name s1 --memory s1.xlsave --disk be/side,none
unharmed g "$before"
create g s1.xlsave --name s1 --no-live --disk beside,none 2>notes.out
grep -q 'drive beside .* is not in the snapshot: left out as asked' notes.out || fail "$(<notes.out)"
revert g s1.xlsave
xl destroy g
gone g
refused 3 'Drive beside' xl-snapshot create g.cfg --record r1 --name r1
xl-snapshot create g.cfg --record r1 --name r1 --disk beside,none
qemu_img_check_all
detail "refused with name and file, until left out"
