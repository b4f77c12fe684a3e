#!/bin/bash
# A domain that has to be restored from its image, on storage that takes the image, but cannot keep it: a thin
# pool that is smaller than its file system says. Known before the domain is destroyed; the guest runs on.
# slow
. /lab/t/lib.sh

vg_up vg0 300M
lvcreate -qq -y --type thin-pool -n pool -L 48M vg0
lvchange -qq --errorwhenfull y vg0/pool
lvcreate -qq -y -V 1G -n thin --thinpool pool vg0
mkfs.ext4 -q -O ^has_journal -E nodiscard,lazy_itable_init=1 /dev/vg0/thin
mkdir images
mount /dev/vg0/thin images
raw b.img 32M
guest_up g mem=96 tick=300 b.img
wait_tick g 2
before=$(stand g)
refused 1 'could not be synced and verified' xl-snapshot create g --name s1 --memory "$LAB_WORK/images/s1.xlsave" --no-live
unharmed g "$before"
[[ $(ls images) != *s1* ]] || fail "left: $(ls images)"
umount images
create g s2.xlsave --name s2 --no-live
revert g s2.xlsave
detail "the image could not be kept: the guest never noticed"
