#!/bin/bash
# For `make soak`: creates are killed at random moments, or libxl's save helper is. Each time the guest
# runs on within 10 s and all is as before, or the snapshot is complete.
# timeout: 7200
# soak
. /lab/t/lib.sh
. /lab/t/faults.sh

rounds=${SOAK_ROUNDS:-50}
faults_up pv
completed=() helpers=0
for ((round = 0; round < rounds; round++)); do
	before=$(stand g)
	xl-snapshot create g --no-live --name "c$round" --memory "c$round.xlsave" -d xvdb,external \
		>"c$round.out" 2>"c$round.err.out" &
	pid=$!
	lab_pause "$((RANDOM % 9)).$((RANDOM % 10))"
	rc=0
	if ((round % 5 == 4)) && helper=$(pid_of libxl-save-help); then
		kill -KILL "$helper"
		helpers=$((helpers + 1))
		wait $pid || rc=$?
		((rc == 0 || rc == 1)) || fail "round $round: exit status $rc: $(<"c$round.err.out")"
	else
		kill -KILL $pid 2>/dev/null || :
		wait $pid || rc=$?
	fi
	goes_on 10
	reliability "kills survived" 1
	if [[ -e c$round.xlsave ]]; then
		intact "c$round.xlsave"
		completed+=("c$round")
	else
		[[ $before == "$(stand g)" ]] || fail "round $round: $(diff <(echo "$before") <(stand g))"
	fi
	# A volume has room for some snapshots only.
	if ((${#completed[@]} > 8)); then
		lvremove -qq -y "vg0/l.${completed[0]}"
		rm "${completed[0]}.xlsave"
		completed=("${completed[@]:1}")
	fi
done
for name in "${completed[@]}"; do intact "$name.xlsave"; done
xl destroy g
qemu_img_check_all
detail "$rounds creates, the helper killed $helpers times"
