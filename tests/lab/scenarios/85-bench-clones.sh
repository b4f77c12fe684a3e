#!/bin/bash
# Ten new domains from one snapshot at the same time, against ten one after the other by script: an overlay,
# a configuration file, xl restore.
# timeout: 7200
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 2
	guest_up g reboot=destroy mem=96 tick=3000 "${disks[@]}"
}
up
create g g.xlsave --name g1 -d xvda,external -d xvdb,external
mkdir new
cat >ours.sh <<'SCRIPT'
for n in {0..9}; do
	xl-snapshot revert -q g.xlsave --as "n$n" --overlay-dir new &
	pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit; done
SCRIPT
cat >script.sh <<'SCRIPT'
set -e
for n in {0..9}; do
	for disk in a b; do qemu-img create -q -f qcow2 -b "$PWD/$disk.qcow2" -F qcow2 "new/n$n-$disk.qcow2"; done
	sed -e "s/^name = .*/name = \"n$n\"/" -e "s,$PWD/\([ab]\).qcow2,$PWD/new/n$n-\1.qcow2,g" g.cfg >"n$n.cfg"
	xl restore "n$n.cfg" g.xlsave
done
SCRIPT
ten() {
	cost clones-10 "$1" bash "$1.sh" || return
	for n in {0..9}; do more_ticks "n$n" 2 && not_torn "n$n" && xl destroy "n$n"; done
	rm -f new/*
}
for ((round = 0; round < rounds; round++)); do
	measure ten ours
	measure ten script
done
