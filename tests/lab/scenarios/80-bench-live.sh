#!/bin/bash
# The pause of a live create with one overlay, of the script, and the floor.
# timeout: 3600
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 1
	guest_up g reboot=destroy tries=8 type=pvh mem=256 tick=1000 "${disks[@]}"
}
live_rounds live-256-1
