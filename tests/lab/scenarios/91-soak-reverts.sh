#!/bin/bash
# For `make soak`: reverts are killed at random moments, one after the other. The snapshot is never
# harmed, and a repeated revert brings the guest back.
# timeout: 7200
# soak
. /lab/t/lib.sh
. /lab/t/faults.sh

rounds=${SOAK_ROUNDS:-50}
faults_up pv
create g s1.xlsave --name s1 --no-live -d xvdb,external
ended=0
for ((round = 1; round <= rounds; round++)); do
	xl-snapshot revert s1.xlsave --discard-current >"r$round.out" 2>"r$round.err.out" &
	pid=$!
	lab_pause "$((RANDOM % 15)).$((RANDOM % 10))"
	kill -KILL $pid 2>/dev/null || :
	rc=0
	wait $pid || rc=$?
	while guard_works; do lab_pause; done
	reliability "kills survived" 1
	((rc != 0)) || ended=$((ended + 1))
	intact s1.xlsave
	((round % 5 == 0)) || continue
	mark g
	xl-snapshot revert -q s1.xlsave >"again$round.out"
	went_back g s1.xlsave
	# What the killed reverts kept of the guest's volumes fills the group, as it would anybody's.
	lvs --noheadings -o lv_full_name -S 'lv_name=~before-revert' vg0 | xargs -r lvremove -qqy
done
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "$rounds reverts, $ended ended before the kill; each snapshot intact, repeated reverts bring the guest back"
