#!/bin/bash
# A create that suspends first, of a PV guest: its pause and its whole time, against libxl alone, xl save -c
# and the script; and what compression adds.
# timeout: 3000
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

disks_up 1
guest_up g mem=256 tick=300 "${disks[@]}"
wait_tick g 3
for ((round = 0; round < rounds; round++)); do
	ours still-256-1 g 1 --no-live
	more_ticks g 2
	floor still-256-1 g still
	more_ticks g 2
	save_c still-256-1 g
	more_ticks g 2
	script still-256-1 g 1
	more_ticks g 2
	ours zstd-256-1 g 1 --no-live --compress zstd
	more_ticks g 2
done
not_torn g
