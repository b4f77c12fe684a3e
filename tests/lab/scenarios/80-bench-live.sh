#!/bin/bash
# The pause of a live create with 1 and 8 overlays, of the script with the same disks, and the floor.
# timeout: 2400
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

disks_up 8
guest_up g type=pvh mem=256 tick=300 "${disks[@]}"
wait_tick g 3
for ((round = 0; round < rounds; round++)); do
	for count in 1 8; do
		ours live-256-$count g $count
		more_ticks g 2
		script live-256-$count g $count
		more_ticks g 2
		floor live-256-$count g live
		more_ticks g 2
	done
done
not_torn g
