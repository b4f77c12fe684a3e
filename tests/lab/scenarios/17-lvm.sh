#!/bin/bash
# What is special to logical volumes: sizes, full groups and pools, lost snapshots, cut-short merges.
# slow
. /lab/t/lib.sh

vg_up vg0 268M
lvcreate -qq -y -n thick -L 64M vg0
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
guest_up g tick=500 /dev/vg0/thick /dev/vg0/thin
wait_tick g 2
names=$(volumes vg0)

refused 3 'has no size' xl-snapshot create g --no-live --memory x.xlsave -d xvdb,lvm,size=16M
refused 2 'is not a size' xl-snapshot create g --no-live --memory x.xlsave -d xvda,lvm,size=16Q
lvcreate -qq -y -n filler -L 100M vg0
refused 3 'size=SIZE' xl-snapshot create g --no-live --memory x.xlsave
lvremove -qq -y vg0/filler
[[ $(volumes vg0) == "$names" ]] || fail "a refusal changed something"

# lvcreate fails for one of the two while the guest stands still: nothing of the other remains.
mkdir -p /run/real && cp /usr/sbin/lvm /run/real/
cat >lvm.sh <<'END'
#!/bin/bash
[[ $1 != lvcreate || $* != *thick.s0* ]] || { echo "insufficient free space" >&2; exit 5; }
exec /run/real/lvm "$@"
END
chmod +x lvm.sh
mount --bind lvm.sh /usr/sbin/lvm
refused 1 'insufficient free space' xl-snapshot create g --name s0 --memory s0.xlsave --no-live
umount /usr/sbin/lvm
[[ $(volumes vg0) == "$names" ]] || fail "left: $(volumes vg0)"
[[ ! -e s0.xlsave && ! -e s0.xlsave.partial ]] || fail "an image is left"
more_ticks g 2
not_torn g

create g s1.xlsave --name s1 --no-live
[[ $(lvs --noheadings -o lv_size --units m --nosuffix vg0/thick.s1 | xargs) == 68.00 ]] ||
	fail "the default size is not the whole origin"
[[ $(lvs --noheadings -o lv_permissions vg0/thick.s1 vg0/thin.s1 | sort -u | xargs) == read-only ]] ||
	fail "a snapshot can be written to"
refused 3 'vg0/thick.s1 exists' xl-snapshot create g --no-live --name s1 --memory x.xlsave

# LVM has a limit of its own for the pool.
mkdir -p /etc/lvm/profile
echo 'activation { thin_pool_autoextend_threshold = 1 }' >/etc/lvm/profile/low.profile
lvchange -qq --metadataprofile low vg0/pool
refused 3 'thin_pool_autoextend_threshold' xl-snapshot revert s1.xlsave --discard-current
lvchange -qq --detachprofile vg0/pool

# The group is too full to keep what is there now.
refused 3 'discard-current' xl-snapshot revert s1.xlsave
revert g s1.xlsave --discard-current
[[ $(volumes vg0) == "pool thick thick.s1 thin thin.s1" ]] || fail "left: $(volumes vg0)"

# The snapshot is open elsewhere.
exec 7</dev/vg0/thick.s1
refused 3 'open' xl-snapshot revert s1.xlsave --discard-current
exec 7<&-
# A second volume with the tag.
tag=$(lvs --noheadings -o lv_tags vg0/thick.s1 | xargs)
lvchange -qq --addtag "$tag" vg0/thin
refused 3 'bear its tag' xl-snapshot revert s1.xlsave --discard-current
lvchange -qq --deltag "$tag" vg0/thin

# A merge that waits because the snapshot was open, as one that a power cut ended: the next revert
# finishes it, but not under a running guest.
exec 7</dev/vg0/thick.s1
lvconvert -qq -y --merge vg0/thick.s1
exec 7<&-
refused 3 'the domain runs on it' xl-snapshot revert s1.xlsave --discard-current
xl destroy g
revert g s1.xlsave --discard-current
[[ $(volumes vg0) == "pool thick thick.s1 thin thin.s1" ]] || fail "left: $(volumes vg0)"

# Merged, and cut short before the snapshot was taken again.
xl destroy g
lvchange -qq --addtag "${tag/xl-snapshot/xl-snapshot-merging}" vg0/thick
lvconvert -qq -y --interval 1 --merge vg0/thick.s1
revert g s1.xlsave --discard-current
[[ $(volumes vg0) == "pool thick thick.s1 thin thin.s1" ]] || fail "left: $(volumes vg0)"
[[ -z $(lvs --noheadings -o lv_tags vg0/thick | xargs) ]] || fail "the tag of the merge is still there"
lvm_check vg0

# A snapshot that is too small overflows; that is noticed before anything is destroyed.
create g s2.xlsave --name s2 --no-live -d xvda,lvm,size=4M
[[ $(lvs --noheadings -o lv_size --units m --nosuffix vg0/thick.s2 | xargs) == 4.00 ]] || fail "not the size asked for"
xl pause g
dd if=/dev/zero of=/dev/vg0/thick bs=1M seek=20 count=8 oflag=direct conv=notrunc
xl unpause g
more_ticks g 2
refused 3 'is lost' xl-snapshot revert s2.xlsave --discard-current
show=$(xl-snapshot show s2.xlsave --json)
[[ $(json revertible <<<"$show") == false ]] || fail "show takes it for sound: $show"
lvremove -qq -y vg0/thick.s2

# A full pool.
lvcreate -qq -y -V 64M -n hog --thinpool pool vg0
dd if=/dev/zero of=/dev/vg0/hog bs=1M count=60 oflag=direct
refused 3 'thin pool vg0/pool is' xl-snapshot create g --no-live --name s3 --memory x.xlsave -d xvda,none
refused 3 'thin pool vg0/pool is' xl-snapshot revert s1.xlsave --discard-current
lvremove -qq -y vg0/hog
more_ticks g 2
not_torn g
revert g s1.xlsave --discard-current
xl destroy g
detail "$(grep -c '^refused as it should be' "$LAB_LOGS/output.log") refusals; two merges finished by the next revert"
