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
for ((round = 0; round < rounds; round++)); do
	measure ours still-256-1 1 --no-live
	measure floor still-256-1 still
	measure save_c still-256-1
	measure script still-256-1 1
	measure ours zstd-256-1 1 --no-live --compress zstd
done
