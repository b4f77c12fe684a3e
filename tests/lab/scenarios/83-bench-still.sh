#!/bin/bash
# A create that suspends first, of a PV guest: its pause and its whole time, against libxl alone, xl save -c
# and the script; and what compression adds.
# timeout: 3600
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 1
	guest_up g reboot=destroy mem=256 tick=1000 "${disks[@]}"
}
# Every other round the other way round: what one leaves in dom0's caches is then for each of its neighbours.
cases=(
	'ours still-256-1 1 --no-live'
	'floor still-256-1 still'
	'save_c still-256-1'
	'script still-256-1 1'
	'ours zstd-256-1 1 --no-live --compress zstd'
)
for ((round = 0; round < rounds; round++)); do
	for ((n = 0; n < ${#cases[@]}; n++)); do
		read -r -a command <<<"${cases[round % 2 ? ${#cases[@]} - 1 - n : n]}"
		measure "${command[@]}"
	done
done
