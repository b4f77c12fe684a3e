#!/bin/bash
# The program is killed after each step of a create: by SIGKILL, so that it can do nothing more. The
# guard that it leaves either takes everything back or completes the snapshot, and within 10 s the
# guest counts on and its xl process is awake.
# timeout: 400
. /lab/t/lib.sh
. /lab/t/faults.sh

faults_up pv
undone=0 completed=0
for ((step = 0; ; step++)); do
	before=$(stand g)
	rc=0
	FAULTS=$step:killed-late "$faulty" create g --no-live --name "s$step" --memory "s$step.xlsave" \
		-d xvdb,external >"s$step.out" 2>"s$step.err.out" || rc=$?
	((rc != 0)) || break
	((rc == 137)) || fail "step $step: exit status $rc instead of 137: $(<"s$step.err.out")"
	goes_on 10
	reliability "kills survived" 1
	if [[ -e s$step.xlsave ]]; then
		intact "s$step.xlsave"
		grep -q 'carried out to its end' "s$step.err.out" || fail "step $step: the guard said: $(<"s$step.err.out")"
		completed=$((completed + 1))
		first=${first-s$step}
	else
		grep -q 'everything is as it was' "s$step.err.out" || fail "step $step: the guard said: $(<"s$step.err.out")"
		[[ $before == "$(stand g)" ]] || fail "step $step: $(diff <(echo "$before") <(stand g))"
		undone=$((undone + 1))
	fi
done
((undone > 5 && completed > 1)) || fail "$undone times undone, $completed times completed"
more_ticks g 1
# One that was killed right after the disks had their snapshots.
mark g
xl-snapshot revert "$first.xlsave"
more_ticks g 3
not_torn g
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "$undone times all was as before, $completed times the snapshot was completed, in at most 10 s"
