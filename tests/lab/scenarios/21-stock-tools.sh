#!/bin/bash
# Without us: stock tools accept our image, and put memory and disks back by hand.
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 64M; done
guest_up g tick=300 a.qcow2 b.qcow2
wait_tick g 3
create g s1.xlsave --name s1 --no-live
[[ $(stat -c %a s1.xlsave) == 600 ]] || fail "the image is not for root alone"
[[ ! -e s1.xlsave.partial ]]
xl-snapshot create g --name s2 --memory - --no-live >s2.xlsave
for image in s1 s2; do
	PYTHONPATH=/lab/xen/lib/python \
		/lab/xen/bin/verify-stream-v2 -f xl -i $image.xlsave
done
more_ticks g 3
not_torn g
xl destroy g
# QEMU may hold the disks a moment longer.
lab_pause 1
qemu-img snapshot -a s1 a.qcow2
qemu-img snapshot -a s1 b.qcow2
mark g
xl restore s1.xlsave
went_back g s1.xlsave
xl destroy g
qemu_img_check_all
detail "verify-stream-v2, qemu-img snapshot -a and xl restore agree"
