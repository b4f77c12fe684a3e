# Sourced by the benchmarks. Needs lib.sh.
# shellcheck shell=bash
#
# Every benchmark measures what it compares in turn, A B C A B C, on one guest. Times are seen from outside,
# by tests/bench/watch.c. tests/bench/report makes the tables of the samples.
#
# A scenario defines boot, which starts the guest g, and calls measure for each sample. Where the emulator
# crashes a PVH guest (see lab), that sample is taken again, of a new guest.

rounds=${BENCH_ROUNDS:-7}

# sample CASE WHO METRIC VALUE: times in microseconds.
sample() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$LAB_LOGS/bench"; }

booted=
up() { boot && booted=1; }

# measure COMMAND...: until it succeeds; then the guest goes on for a while.
measure() {
	local tries
	for tries in 1 2 3 4 5 6; do
		if [[ ! $booted ]] || ! domid g >/dev/null; then up; fi
		if "$@" && lab_goes_on; then return; fi
		# xl dmesg is the witness; it is cleared with each scenario.
		[[ $(xl dmesg) == *'Triple fault'* ]] || fail "no sample: $*"
		xl destroy g 2>/dev/null || :
		gone g
		echo "the emulator crashed the guest, try $tries" >&2
	done
	fail "no sample: $*"
}
lab_goes_on() { (more_ticks g 2 20 && not_torn g); }

# watched CASE WHO COMMAND...: how long the guest did not run, and what the command cost. What the command
# prints is left in watched.out.
watched() {
	local id
	id=$(domid g) && samples "$1" "$2" watch "$id" "${@:3}"
}
# cost CASE WHO COMMAND...: the same where it does not matter whether the guest runs.
cost() { samples "$1" "$2" cost "${@:3}"; }
samples() {
	local case=$1 who=$2 pair
	shift 2
	xl-snapshot-bench "$@" >watched.out || return 1
	for pair in $(tail -n 1 watched.out); do
		sample "$case" "$who" "${pair%%=*}" "${pair#*=}"
	done
}

# us MILLISECONDS: in microseconds.
us() { awk -v ms="$1" 'BEGIN {printf "%.0f", ms * 1000}'; }

# QEMU's node of each vdev.
declare -A top_node=()
taken=0

# disks_up COUNT: so many qcow2 images for the guest, in the array disks; their vdevs in vdevs.
disks_up() {
	local n letter
	disks=() vdevs=()
	for ((n = 0; n < $1; n++)); do
		printf -v letter '%b' "\\x$(printf '%x' $((97 + n)))"
		rm -f "$letter.qcow2"
		qcow2 "$letter.qcow2" 64M
		disks+=("$letter.qcow2")
		vdevs+=("xvd$letter")
		top_node[xvd$letter]=xvd$letter-qcow2
	done
}

# ours CASE COUNT ARGUMENT...: xl-snapshot, an overlay for the first COUNT disks and nothing for the others.
ours() {
	local case=$1 count=$2 n id image options=()
	shift 2
	taken=$((taken + 1))
	image=o$taken.xlsave
	for ((n = 0; n < ${#vdevs[@]}; n++)); do
		if ((n < count)); then
			options+=(-d "${vdevs[n]},external")
		else
			options+=(-d "${vdevs[n]},none")
		fi
	done
	rm -f "$image"
	watched "$case" ours xl-snapshot create g --name "o$taken" --memory "$image" -v --json \
		"${options[@]}" "$@" 2>"$LAB_LOGS/steps-$case-$taken.log" || return 1
	id=$(json id <watched.out)
	for ((n = 0; n < count; n++)); do
		top_node[${vdevs[n]}]=${vdevs[n]}-${id%%-*}
	done
	sample "$case" ours reported "$(us "$(json pause_ms <watched.out)")"
	# Where our part of the pause goes.
	while read -r ms _ words; do
		case $words in
		*'is still suspended'*) sample "$case" ours step-check "$(us "$ms")" ;;
		"store libxl's"*) sample "$case" ours step-store "$(us "$ms")" ;;
		*'QMP transaction'*) sample "$case" ours step-transaction "$(us "$ms")" ;;
		'resume domain'*) sample "$case" ours step-resume "$(us "$ms")" ;;
		esac
	done <"$LAB_LOGS/steps-$case-$taken.log"
	sample "$case" ours size "$(stat -c %s "$image")"
	rm -f "$image"
}

# script CASE COUNT: what an administrator would do: xl save -p, one QMP command for each disk, xl unpause.
# It is as good as a script can be: QEMU is connected to before, and nothing sleeps. Its snapshots are
# internal ones: after overlays made behind libxl's back xl-snapshot refuses the domain, with reason.
script() {
	local case=$1 count=$2 n commands=()
	taken=$((taken + 1))
	for ((n = 0; n < count; n++)); do
		commands+=("{\"execute\": \"blockdev-snapshot-internal-sync\", \"arguments\": {\"device\": \"${top_node[${vdevs[n]}]}\", \"name\": \"s$taken\"}}")
	done
	cat >script.sh <<'SCRIPT'
set -e
name=$1 id=$2
shift 2
coproc QMP { exec socat - "UNIX:/var/run/xen/qmp-libxenstat-$id"; }
ask() {
	local line
	echo "$1" >&"${QMP[1]}"
	while read -r line <&"${QMP[0]}"; do
		case $line in
		*'"return"'*) return 0 ;;
		*'"error"'*) echo "$line" >&2; return 1 ;;
		esac
	done
	return 1
}
ask '{"execute": "qmp_capabilities"}'
xl save -p "$name" script.xlsave
for command; do ask "$command"; done
xl unpause "$name"
SCRIPT
	watched "$case" script bash script.sh g "$(domid g)" "${commands[@]}" || return 1
	rm -f script.xlsave
}

# floor CASE live|still: libxl's suspend and resume alone.
floor() { watched "$1" floor xl-snapshot-bench bare "$(domid g)" "$2"; }

# live_rounds CASE: what a live create with one overlay is measured against.
live_rounds() {
	local round
	for ((round = 0; round < rounds; round++)); do
		measure ours "$1" 1
		measure script "$1" 1
		measure floor "$1" live
	done
}

# save_c CASE: xl save -c, which saves and lets the guest go on.
save_c() {
	watched "$1" xl-save-c xl save -c g save.xlsave || return 1
	rm -f save.xlsave
}
