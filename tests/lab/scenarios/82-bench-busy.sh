#!/bin/bash
# The pause of a live create of a guest that writes to its memory and its disk, of the script, and the floor.
# timeout: 2400
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

disks_up 1
guest_up g type=pvh mem=256 tick=300 extra=dirty_mb=8 "${disks[@]}"
wait_tick g 3
for ((round = 0; round < rounds; round++)); do
	ours busy-256-1 g 1
	more_ticks g 2
	script busy-256-1 g 1
	more_ticks g 2
	floor busy-256-1 g live
	more_ticks g 2
done
not_torn g
