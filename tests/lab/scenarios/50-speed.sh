#!/bin/bash
# Measures, side by side in one boot: the pause of a live create with one overlay, and of the script
# an administrator would write with xl save -p, QMP and xl unpause; start-up time and memory.
. /lab/t/lib.sh

qcow2 a.qcow2 64M
guest_up g type=pvh mem=256 tick=300 a.qcow2
wait_tick g 3
now() { echo "${EPOCHREALTIME/./}"; }
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

# The script. The guest stands still from the end of the copy's preparation to the unpause: nearly
# all of xl save -p, which is never live.
by_script() {
	local overlay=$LAB_WORK/script$1.qcow2 begin node top=$2
	qemu-img create -q -f qcow2 -u -b "$top" -F qcow2 "$overlay" 64M
	node=$([[ $1 == 1 ]] && echo "$3" || echo "script$(($1 - 1))")
	begin=$(now)
	xl save -p g script.xlsave >&2
	{
		echo '{"execute": "qmp_capabilities"}'
		echo "{\"execute\": \"blockdev-snapshot-sync\", \"arguments\": {\"node-name\": \"$node\", \"snapshot-node-name\": \"script$1\", \"snapshot-file\": \"$overlay\", \"format\": \"qcow2\", \"mode\": \"existing\"}}"
		lab_pause 0.2
	} | socat -t 1 - "UNIX:/var/run/xen/qmp-libxl-$(domid g)" >qmp.log
	xl unpause g
	script_ms=$((($(now) - begin) / 1000))
	(($(grep -c '"return"' qmp.log) == 2)) || fail "the script's QMP failed: $(<qmp.log)"
	rm -f script.xlsave
}

# peak_of PID: the most memory a process ever had, in KiB, read until it is gone.
peak=0
peak_of() {
	local - key value
	{ set +x; } 2>/dev/null
	while kill -0 "$1" 2>/dev/null; do
		while read -r key value _; do
			if [[ $key == VmHWM: ]]; then
				((value <= peak)) || peak=$value
				break
			fi
		done 2>/dev/null <"/proc/$1/status" || :
		lab_pause 0.1
	done
}

ours=() theirs=()
for round in 1 2 3; do
	xl-snapshot create -v g --name r$round --memory r$round.xlsave --json -d xvda,external >r.json &
	peak_of $!
	wait $!
	[[ $(json live <r.json) == true ]]
	ours+=("$(ms "$(json pause_ms <r.json)")")
	rm -f r$round.xlsave
	more_ticks g 1
done
overlay=$LAB_WORK/g-xvda.after-r3.qcow2
node=xvda-$(json id <r.json | cut -c 1-8)
for round in 1 2 3; do
	by_script $round "$overlay" "$node"
	overlay=$LAB_WORK/script$round.qcow2
	theirs+=("$script_ms")
	more_ticks g 1
done
not_torn g
our=$(median "${ours[@]}") their=$(median "${theirs[@]}")

# Start-up: the mean of ten.
begin=$(now)
for i in {1..10}; do xl-snapshot --help >/dev/null; done
start=$((($(now) - begin) / 10000))
for i in {1..10}; do /bin/true; done
begin=$(now)
for i in {1..10}; do /bin/true; done
nothing=$((($(now) - begin) / 10000))

detail "pause $our ms, script $their ms: ratio 0.$(printf %02d $((our * 100 / their))); --help $start ms (true: $nothing ms); peak memory $((peak / 1024)) MiB"
((our * 4 <= their)) || fail "the pause, $our ms, is more than a quarter of the script's, $their ms"
((peak > 0 && peak < 32 * 1024)) || fail "peak memory $peak KiB"
