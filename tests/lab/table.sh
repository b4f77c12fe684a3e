# Sourced by scenarios that are tables: one line a case. See scenarios/49-whole-way-forward.sh.
# shellcheck shell=bash

# The case that is tried, for messages.
lab_trials=0
# What takes the set-up of a case back that failed: one dom0 serves all scenarios.
lab_undo=
take_back() { [[ -z $lab_undo ]] || eval "$lab_undo" || :; }
trap take_back EXIT

# trial NAME CODE WORDS SETUP UNDO [COMMAND]: after SETUP, COMMAND (a revert to s1.xlsave if there is none) ends
# with CODE, says WORDS, and changes nothing: the guest g has the number it had and ticks on, or there is none
# as before. If it is a revert, show says the same, and for the first case a dry run. UNDO takes SETUP back.
trial() {
	local name=$1 code=$2 words=$3 setup=$4 undo=$5 command=${6:-xl-snapshot revert s1.xlsave} id shown rc
	echo "trial: $name" >&2
	lab_undo=$undo
	eval "$setup" || fail "$name: the set-up failed"
	id=$(domid g || :)
	# shellcheck disable=SC2086
	refused "$code" "$words" $command
	[[ $(domid g || :) == "$id" ]] || fail "$name: domain g is another one now, or gone"
	if [[ $command == "xl-snapshot revert s1.xlsave" ]]; then
		# A dry run takes the same way, and each process costs time here.
		((lab_trials > 0)) || refused "$code" "$words" xl-snapshot revert s1.xlsave --dry-run
		shown=$(xl-snapshot show s1.xlsave --json)
		[[ $(json revertible <<<"$shown") == false ]] || fail "$name: show takes it for sound"
		[[ $shown == *"$words"* ]] || fail "$name: show does not say '$words': $shown"
	fi
	[[ ! $id ]] || more_ticks g 1
	lab_undo=
	eval "$undo" || fail "$name: it was not taken back"
	lab_trials=$((lab_trials + 1))
}

# hold FILE [MODE]: another process has it open, < or >>, until `let_go`.
hold() {
	case ${2:-<} in
	'<') sleep 1000 <"$1" & ;;
	*) sleep 1000 >>"$1" & ;;
	esac
	lab_held=$!
}
let_go() { kill "$lab_held" && { wait "$lab_held" || :; }; }
