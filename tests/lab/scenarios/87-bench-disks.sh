#!/bin/bash
# The pause of a live create with 8 overlays against that with one of the same guest's disks.
# timeout: 3600
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 8
	guest_up g reboot=destroy tries=8 type=pvh mem=256 tick=1500 "${disks[@]}"
}
for ((round = 0; round < rounds; round++)); do
	measure ours live-256-8 8
	measure ours live-256-1of8 1
done
