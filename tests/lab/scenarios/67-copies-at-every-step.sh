#!/bin/bash
# The same as 67-revert-at-every-step, with a thin volume and a reflink copy: a revert makes the new volume and the
# new file before it destroys the domain, and renames afterwards. Nothing half-made is left.
# timeout: 1800
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

xfs_up x
raw x/r.img 32M
vg_up vg0 268M
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
guest_up g type=pv mem=96 tick=300 /dev/vg0/thin x/r.img
wait_tick g 3
create g s1.xlsave --name s1 --no-live -d xvdb,reflink

# What was kept of earlier contents; a new volume or file that nothing uses is one too many.
kept() {
	local volumes files
	volumes=$(lvs --noheadings -o lv_name -S 'lv_name=~before-revert || lv_name=~after-revert' vg0 | wc -l)
	files=$(find x -name '*before-revert*' -o -name '*after-revert*' | wc -l)
	echo $((volumes + files))
}

revert_at_every_step
[[ -z $(lvs --noheadings -o lv_name -S 'lv_name=~after-revert' vg0) ]] || fail "left: $(lvs vg0)"
[[ -z $(find x -name '*after-revert*') ]] || fail "left: $(ls x)"
xl destroy g
gone g
lvm_check vg0
detail "$failed steps failed, after $killed the program was killed; each time a revert brought the guest back"
