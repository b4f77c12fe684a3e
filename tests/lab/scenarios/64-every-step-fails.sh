#!/bin/bash
# Each step of a create fails once, after it has done its work; and once more its undo fails. The same
# is done to the model of the unit tests: both must agree in what was done and how it ended.
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

faults_up pv
# try NAME FAULTS: the exit status is in rc.
try() {
	rc=0
	FAULTS=$2 "$faulty" create g --no-live --name "$1" --memory "$1.xlsave" -d xvdb,external \
		>"$1.out" 2>"$1.err.out" || rc=$?
	((rc != 99)) || fail "$2: $(<"$1.err.out")"
	reliability "fault points" 1
}
for ((step = 0; ; step++)); do
	before=$(stand g)
	try "s$step" "$step:fails-late"
	((rc != 0)) || break
	goes_on 20
	case $rc in
	1) [[ $before == "$(stand g)" ]] || fail "step $step: $(diff <(echo "$before") <(stand g))" ;;
	4) [[ -e s$step.xlsave || -e s$step.xlsave.partial ]] || fail "step $step: the image is gone" ;;
	*) fail "step $step: exit status $rc: $(<"s$step.err.out")" ;;
	esac
	grep -q 'told to fail afterwards' "s$step.err.out" || fail "step $step: no cause in: $(<"s$step.err.out")"
done
detail "$step steps failed; model and host agreed"
