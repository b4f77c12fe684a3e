#!/bin/bash
# QEMU answers the transaction of the disks only after longer than any of our limits, or never. It is asked
# until its outcome is known: the snapshot is complete then, also if we were killed meanwhile, or all is as it
# was. What QEMU writes to, libxl says.
# slow
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 32M; done
guest_up g mem=96 tick=300 a.qcow2 b.qcow2
wait_tick g 2
qemu() { xenstore-read "/local/domain/$(domid g)/image/device-model-pid"; }

# stopped SECONDS: QEMU is stopped before it is sent the last of the transaction, and for so long after it was.
stopped() {
	kill -CONT "$helper_pid"
	lab_pause "$1"
	kill -0 "$create_pid" || fail "it did not wait for QEMU: $(<errors.out)"
	[[ ! -e $image ]] || fail "there is an image before QEMU has done anything"
}

image=s1.xlsave
lab_boot[$image]=$(boot_id g)
lab_from[$image]=$(tick g)
hold_create g $image --name s1 --no-live -d xvdb,external
qemu=$(qemu)
kill -STOP "$qemu"
stopped 75
kill -CONT "$qemu"
let_create 0 'is paused until its QEMU' 'note: the guest was paused for'
lab_until[$image]=$(($(tick g) + 1))
more_ticks g 3
not_torn g
[[ $(image_of g xvdb) == "$LAB_WORK/g-xvdb.after-s1.qcow2" ]]
revert g $image

# We are killed meanwhile: the guard waits in our place.
image=s2.xlsave
lab_boot[$image]=$(boot_id g)
lab_from[$image]=$(tick g)
hold_create g $image --name s2 --no-live -d xvdb,external
qemu=$(qemu)
kill -STOP "$qemu"
stopped 8
kill -KILL "$create_pid"
lab_pause 10
[[ ! -e $image && -e $image.partial ]] || fail "the guard has not waited"
kill -CONT "$qemu"
# QEMU does it, or it notices first that nobody is connected any more; but all of it, or nothing.
while [[ -e $image.partial ]]; do lab_pause 0.2; done
taken=$(qemu-img snapshot -U -l a.qcow2 | grep -c ' s2 ' || :)
if [[ -e $image ]]; then
	lab_until[$image]=$(($(tick g) + 1))
	((taken == 1)) || fail "an image without a snapshot"
	[[ $(image_of g xvdb) == *.after-s2.qcow2 ]] || fail "libxl does not know the overlay"
else
	((taken == 0)) || fail "a snapshot without an image"
	[[ $(image_of g xvdb) != *.after-s2.qcow2 ]] || fail "libxl names an overlay that nobody uses"
fi
more_ticks g 3
not_torn g
[[ $(ps -o stat= -p "$(xl_monitor_pid g)") != T* ]] || fail "the xl process is held"
((taken == 0)) || revert g $image

# A transaction that takes its time by itself: an image with very many clusters.
xl destroy g
qemu_img_check_all
qcow2 c.qcow2 32M
qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata big.qcow2 128M
guest_up g mem=96 tick=300 c.qcow2 big.qcow2
wait_tick g 2
begin=$SECONDS
create g s3.xlsave --name s3 --no-live
took=$(json pause_ms <s3.xlsave.json)
revert g s3.xlsave

# QEMU never answers, because it ends: nothing is switched any more, and that is said.
hold_create g s4.xlsave --name s4 --no-live
qemu=$(qemu)
kill -STOP "$qemu"
stopped 2
kill -KILL "$qemu"
let_create 1 'ended before the disks had their snapshots' 'destroy the domain and start it again'
[[ ! -e s4.xlsave && ! -e s4.xlsave.partial ]] || fail "there is an image of half a snapshot"
[[ $(ps -o stat= -p "$(xl_monitor_pid g)") != T* ]] || fail "the xl process is held"
xl destroy g
qemu_img_check_all
detail "75 s without an answer waited for, the guard too ($taken); many clusters: a pause of $(ms "$took") ms"
