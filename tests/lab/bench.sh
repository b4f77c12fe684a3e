# Sourced by the benchmarks. Needs lib.sh.
# shellcheck shell=bash
#
# Every benchmark measures what it compares in turn, A B C A B C, on one guest in one boot. Times are seen
# from outside, by xl-snapshot-bench. tests/bench/report makes the tables of the samples.

rounds=${BENCH_ROUNDS:-7}

# sample CASE WHO METRIC VALUE: times in microseconds.
sample() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$LAB_LOGS/bench"; }

# watched CASE WHO DOMAIN COMMAND...: how long the domain did not run, and what the command cost. What the
# command prints is left in watched.out.
watched() {
	local case=$1 who=$2 id pair rc=0
	id=$(domid "$3")
	shift 3
	xl-snapshot-bench watch "$id" "$@" >watched.out || rc=$?
	((rc == 0)) || fail "exit status $rc: $*"
	for pair in $(tail -n 1 watched.out); do
		sample "$case" "$who" "${pair%%=*}" "${pair#*=}"
	done
}

# Where the guest's disks are now: the file and QEMU's node of each vdev.
declare -A top_file=() top_node=()
taken=0

# disks_up COUNT: so many qcow2 images for the guest, in the array disks; their vdevs in vdevs.
disks_up() {
	local n letter
	disks=() vdevs=()
	for ((n = 0; n < $1; n++)); do
		printf -v letter '%b' "\\x$(printf '%x' $((97 + n)))"
		qcow2 "$letter.qcow2" 64M
		disks+=("$letter.qcow2")
		vdevs+=("xvd$letter")
		top_file[xvd$letter]=$LAB_WORK/$letter.qcow2
		top_node[xvd$letter]=xvd$letter-qcow2
	done
}

# ours CASE DOMAIN COUNT ARGUMENT...: xl-snapshot, an overlay for the first COUNT disks and nothing for the
# others.
ours() {
	local case=$1 name=$2 count=$3 n id image wishes=()
	shift 3
	taken=$((taken + 1))
	image=o$taken.xlsave
	for ((n = 0; n < ${#vdevs[@]}; n++)); do
		if ((n < count)); then
			wishes+=(-d "${vdevs[n]},external")
		else
			wishes+=(-d "${vdevs[n]},none")
		fi
	done
	watched "$case" ours "$name" xl-snapshot create "$name" --name "o$taken" --memory "$image" -vv --json \
		"${wishes[@]}" "$@" 2>"$LAB_LOGS/steps-$case-$taken.log"
	id=$(json id <watched.out)
	for ((n = 0; n < count; n++)); do
		top_file[${vdevs[n]}]=$LAB_WORK/$name-${vdevs[n]}.after-o$taken.qcow2
		top_node[${vdevs[n]}]=${vdevs[n]}-${id%%-*}
	done
	sample "$case" ours reported "$(json pause_ms <watched.out | awk '{printf "%.0f", $1 * 1000}')"
	sample "$case" ours size "$(stat -c %s "$image")"
	rm -f "$image"
}

# script CASE DOMAIN COUNT: what an administrator would do: xl save -p, QMP, xl unpause. It is as good as a
# script can be: overlays are made and QEMU is connected to before, and nothing sleeps.
script() {
	local case=$1 name=$2 count=$3 n vdev overlay commands=()
	taken=$((taken + 1))
	for ((n = 0; n < count; n++)); do
		vdev=${vdevs[n]}
		overlay=$LAB_WORK/s$taken-$vdev.qcow2
		qemu-img create -q -f qcow2 -u -b "${top_file[$vdev]}" -F qcow2 "$overlay" 64M
		commands+=("{\"execute\": \"blockdev-snapshot-sync\", \"arguments\": {\"node-name\": \"${top_node[$vdev]}\", \"snapshot-node-name\": \"s$taken-$vdev\", \"snapshot-file\": \"$overlay\", \"format\": \"qcow2\", \"mode\": \"existing\"}}")
		top_file[$vdev]=$overlay
		top_node[$vdev]=s$taken-$vdev
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
	watched "$case" script "$name" bash script.sh "$name" "$(domid "$name")" "${commands[@]}"
	rm -f script.xlsave
}

# floor CASE DOMAIN live|still: libxl's suspend and resume alone.
floor() { watched "$1" floor "$2" xl-snapshot-bench bare "$(domid "$2")" "$3"; }

# save_c CASE DOMAIN: xl save -c, which saves and lets the guest go on.
save_c() {
	watched "$1" "xl save -c" "$2" xl save -c "$2" save.xlsave
	rm -f save.xlsave
}
