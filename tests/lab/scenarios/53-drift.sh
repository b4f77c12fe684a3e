#!/bin/bash
# What people do between a snapshot and its revert: another snapshot of another kind, an overlay by hand, a
# volume named by its device, a disk attached, a kernel removed. The revert is right, or refused before anything
# changed.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
xfs_up x
raw x/f.img 64M
qcow2 a.qcow2 32M
vg_up vg0 400M
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0

# A copy that shares its content, then an overlay over the same file: the file is a base by now.
guest_up r mem=96 tick=300 x/f.img
wait_tick r 2
create r r1.xlsave --name r1 --no-live -d "xvda,reflink"
create r r2.xlsave --name r2 --no-live -d "xvda,external"
base=$(sha256sum <x/f.img)
revert r r1.xlsave --discard-current
[[ $(sha256sum <x/f.img) == "$base" ]] || fail "the base of r2 was touched"
# Past the moment of r2, so that going there is a jump.
wait_tick r $((lab_until[r2.xlsave] + 3))
revert r r2.xlsave
revert r r1.xlsave
xl destroy r
gone r

# By the name of its device, which stays with the volume when that gets another name.
device=$(readlink -f /dev/vg0/thin)
[[ $device == /dev/dm-* ]] || fail "no device: $device"
guest_up t mem=96 tick=300 "$device"
wait_tick t 2
create t t1.xlsave --name t1 --no-live
revert t t1.xlsave
[[ $(image_of t xvda) == /dev/vg0/thin ]] || fail "it runs on $(image_of t xvda)"
revert t t1.xlsave --discard-current
# Somebody's own snapshot of the volume is not thrown away with it.
lvcreate -qq -s -L 8M -n mine vg0/thin
before=$(domid t)
refused 3 'vg0/mine is a snapshot of it' xl-snapshot revert t1.xlsave --discard-current
[[ $(domid t) == "$before" ]] || fail "it was destroyed"
revert t t1.xlsave
lvs vg0/mine >/dev/null || fail "vg0/mine is gone"
xl destroy t
gone t

# An overlay by hand over an image with a snapshot inside; the domain is down.
guest_up g mem=96 tick=300 'cfg=uuid = "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a053"' a.qcow2
wait_tick g 2
xl-snapshot create g.cfg --name s1 --memory s1.xlsave --no-live -d xvda,internal
xl destroy g
gone g
qemu-img create -q -f qcow2 -b "$w/a.qcow2" -F qcow2 new.qcow2
sed -i 's/a\.qcow2/new.qcow2/' g.cfg
xl create -q g.cfg
wait_line g '^TICK [0-9]'
wait_tick g 3
# A clone beside the running original, which has the image open.
mkdir clones
xl-snapshot revert s1.xlsave --as h --overlay-dir "$w/clones"
more_ticks h 2
xl destroy h
# It knows of a disk that was attached since.
raw late.img 16M
xl block-attach g "format=raw,vdev=xvdb,access=rw,target=$w/late.img"
xl-snapshot revert s1.xlsave --dry-run >plan.out 2>&1 || fail "$(<plan.out)"
grep -q 'xvdb .* is not in the snapshot' plan.out || fail "no word of xvdb: $(<plan.out)"
xl destroy g
gone g
qemu-img convert -O raw new.qcow2 before.raw
xl-snapshot revert s1.xlsave
more_ticks g 2
not_torn g
xl destroy g
gone g
qemu-img convert -O raw new.qcow2 after.raw
cmp before.raw after.raw || fail "the overlay was ruined by the revert of its base"

# Without memory, the domain is booted: from a kernel that is there.
cp /lab/guest/vmlinux kernel.out
qcow2 b.qcow2 32M
guest_up k mem=96 tick=300 b.qcow2
sed -i "s|^kernel = .*|kernel = \"$w/kernel.out\"|" k.cfg
xl destroy k
gone k
xl create -q k.cfg
wait_line k '^TICK [0-9]'
xl-snapshot create k.cfg --name d1 --disk-only --crash-consistent --record d1.record
id=$(domid k)
mv kernel.out gone.out
refused 3 'kernel.out' xl-snapshot revert d1.record
[[ $(domid k) == "$id" ]] || fail "it was destroyed"
xl destroy k

# What a disk rests on has a time in the future: a revert would take it for changed.
qemu-img create -q -f qcow2 -b "$w/b.qcow2" -F qcow2 e.qcow2
touch -d '+1 hour' b.qcow2
guest_up e mem=96 tick=300 e.qcow2
wait_tick e 2
refused 3 "its base $w/b.qcow2 was written to at" xl-snapshot create e --name e1 --memory e1.xlsave --no-live
xl destroy e

# One file that is two disks; a configuration file that cannot be replaced.
qcow2 c.qcow2 32M
guest_up d mem=96 tick=300 c.qcow2 "format=qcow2,vdev=xvdb,access=rw,target=$w/../${w##*/}/c.qcow2" && {
	refused 3 'is that file too' xl-snapshot create d --name x --memory x.xlsave --no-live
	xl destroy d
}
detail "reflink below an overlay, a volume by its device, an overlay by hand, a disk attached, a kernel gone, one file twice"
