#!/bin/bash
# The pause of a live create of a guest that writes to its memory and its disk, of the script, and the floor.
# timeout: 3600
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 1
	guest_up g reboot=destroy tries=8 type=pvh mem=256 tick=1000 extra=dirty_mb=2 "${disks[@]}"
}
live_rounds busy-256-1
