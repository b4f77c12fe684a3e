#!/bin/bash
# What a disk's own file has to allow: that it is renamed, that its clusters are counted often enough, and that the
# domain writes to it.
# slow
. /lab/t/lib.sh
. /lab/t/table.sh

w=$LAB_WORK
xfs_up x
raw x/f.img 64M
guest_up g mem=96 tick=300 x/f.img
wait_tick g 2
create g s1.xlsave --name s1 --no-live -d xvda,reflink
trial "the file is immutable" 3 'f.img is immutable' 'chattr +i x/f.img' 'chattr -i x/f.img'
trial "the file is append-only" 3 'f.img is append-only' 'chattr +a x/f.img' 'chattr -a x/f.img'
trial "the file is mounted over itself" 3 'f.img is a mount point' 'mount --bind x/f.img x/f.img' 'umount x/f.img'
# Nothing of that matters to a copy that is only read.
chattr +i x/g-xvda.at-s1.img
revert g s1.xlsave
chattr -i x/g-xvda.at-s1.img
xl destroy g
gone g

# QEMU takes a snapshot in an image with reference counts of 2 bits; qemu-img does not put it back.
qemu-img create -q -f qcow2 -o refcount_bits=2 c.qcow2 32M
guest_up g mem=96 tick=300 c.qcow2
wait_tick g 2
trial "the counts are too short" 3 'qemu-img amend' : : \
	"xl-snapshot create g --name s2 --memory s2.xlsave --no-live"
xl-snapshot create g --name s2 --memory s2.xlsave --no-live -d xvda,external
xl destroy g
gone g

# Longer ones are too short in the end, because each revert keeps a snapshot of what was there.
qemu-img create -q -f qcow2 -o refcount_bits=4 d.qcow2 32M
guest_up g mem=96 tick=300 'cfg=uuid = "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a055"' d.qcow2
wait_tick g 2
create g s3.xlsave --name s3 --no-live
mv s3.xlsave s1.xlsave
xl destroy g
gone g
for ((i = 1; i <= 12; i++)); do qemu-img snapshot -c "by-hand-$i" d.qcow2; done
trial "more snapshots than it can count" 3 'qemu-img amend' : :
qemu-img amend -q -f qcow2 -o refcount_bits=16 d.qcow2
mark g
xl-snapshot revert s1.xlsave
more_ticks g 3
not_torn g
xl destroy g
gone g

# A disk that was left out, and was snapshotted later: the domain of then would write into the later snapshot.
qcow2 e.qcow2 32M
qcow2 h.qcow2 32M
guest_up g mem=96 tick=300 'cfg=uuid = "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a056"' e.qcow2 h.qcow2
wait_tick g 2
create g s4.xlsave --name s4 --no-live -d xvdb,none
mv -f s4.xlsave s1.xlsave
create g s5.xlsave --name s5 --no-live -d xvda,external -d xvdb,external
trial "a disk that was left out is the base of a snapshot" 3 'has no write permission' : :
xl destroy g
qemu_img_check_all
detail "$lab_trials cases refused before anything changed"
