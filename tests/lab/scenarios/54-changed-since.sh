#!/bin/bash
# What changed since the snapshot: an image that was resized, a read-only disk that was rewritten, a base that was
# moved, other names of disks. And a revert of a thick volume that fails and is repeated leaves nothing more.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
qcow2 a.qcow2 32M
raw b.img 32M
raw ro.img 1M
vg_up vg0 160M
lvcreate -qq -y -n thick -L 32M vg0
guest_up g tick=300 "format=qcow2,vdev=d0p0,access=rw,target=$w/a.qcow2" \
	"format=raw,vdev=d1p0,access=rw,backendtype=qdisk,target=$w/b.img" \
	"format=raw,vdev=xvdc,access=rw,target=/dev/vg0/thick" \
	"format=raw,vdev=xvdd,access=ro,target=$w/ro.img"
wait_tick g 2

# ---- a disk has several names
create g s1.xlsave --name s1 --no-live -d xvdb,external
[[ $(image_of g d1p0) != "$w/b.img" ]] || fail "the stored configuration was not switched"
refused 2 'is named twice' xl-snapshot create g --no-live --memory x.xlsave -d xvda,internal -d d0p0,none

# ---- repeats of a revert whose restore fails
kept() { lvs --noheadings -o lv_name -S 'lv_name=~before-revert' vg0 | wc -l; }
helper=/usr/lib/xen-4.17/bin/libxl-save-helper
mark g
mount --bind /bin/false $helper
for _ in 1 2 3; do
	refused 4 'xl-snapshot revert' xl-snapshot revert s1.xlsave
	[[ $(kept) == 1 ]] || fail "left: $(volumes vg0)"
	! qemu-img info -f qcow2 a.qcow2 | grep before-revert || fail "a snapshot is left in a.qcow2"
done
umount $helper
xl-snapshot revert -v s1.xlsave --json >revert.out
went_back g s1.xlsave
[[ $(kept) == 1 ]] || fail "left: $(volumes vg0)"
grep -q 'vg0/thick.before-revert' revert.out || fail "it is not told where the content before is: $(<revert.out)"
[[ $(lvs --noheadings -o data_percent vg0/thick.s1 | xargs) != 0.00 ]] || fail "what was written is not seen"
lvremove -qq -y "$(lvs --noheadings -o lv_full_name -S 'lv_name=~before-revert' vg0 | xargs)"

# ---- the base was moved: back by a link
xl destroy g
mv b.img elsewhere.img
refused 3 "the snapshot expects it at $w/b.img" xl-snapshot revert s1.xlsave
ln -s elsewhere.img b.img
revert g s1.xlsave --discard-current

# ---- the image was resized, the read-only disk rewritten
xl destroy g
qemu-img resize -q -f qcow2 a.qcow2 64M
echo changed | dd of=ro.img conv=notrunc status=none
xl-snapshot show s1.xlsave >show.out
grep -q 'it has 64 MiB now, and 32 MiB again' show.out || fail "show does not tell of the size: $(<show.out)"
grep -q 'ro.img was written to since' show.out || fail "show does not tell of ro.img: $(<show.out)"
xl-snapshot revert s1.xlsave --as h --overlay-dir "$w" --dry-run >plan.out
grep -q 'resize it: qemu-img resize' plan.out || fail "the copy is not resized: $(<plan.out)"
revert g s1.xlsave --discard-current
qemu-img info -U -f qcow2 --output json a.qcow2 | grep -q '"virtual-size": 33554432' || fail "the size is not back"
xl destroy g
lvm_check vg0
detail "three failed reverts of a thick volume left one volume; a moved base, a resized image"
