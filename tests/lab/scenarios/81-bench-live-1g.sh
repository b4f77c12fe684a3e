#!/bin/bash
# The pause of a live create of a guest with 1 GiB, of the script, and the floor.
# timeout: 2400
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

disks_up 1
guest_up g type=pvh mem=1024 tick=300 "${disks[@]}"
wait_tick g 3
for ((round = 0; round < rounds; round++)); do
	ours live-1024-1 g 1
	more_ticks g 2
	script live-1024-1 g 1
	more_ticks g 2
	floor live-1024-1 g live
	more_ticks g 2
done
not_torn g
