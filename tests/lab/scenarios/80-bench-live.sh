#!/bin/bash
# The pause of a live create with one overlay, of the script, and the floor.
# timeout: 3600
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 1
	guest_up g type=pvh mem=256 tick=1000 "${disks[@]}"
}
for ((round = 0; round < rounds; round++)); do
	measure ours live-256-1 1
	measure script live-256-1 1
	measure floor live-256-1 live
done
