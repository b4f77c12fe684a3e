#!/bin/bash
# How the pause and the whole of a create grow with memory, disks, the depth of their chains and the rate at
# which the guest writes.
# timeout: 7200
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

# grow CASE COUNT ARGUMENT...: on a new guest.
grow() {
	local round
	xl destroy g 2>/dev/null || :
	booted=
	for ((round = 0; round < rounds; round++)); do measure ours "$@"; done
}

for count in 1 4 16; do
	boot() {
		disks_up "$count"
		guest_up g reboot=destroy mem=256 tick=1000 "${disks[@]}"
	}
	grow still-disks-$count "$count" --no-live
done
for depth in 10 29; do
	boot() {
		local n top=$LAB_WORK/a.qcow2
		disks_up 1
		for ((n = 1; n < depth; n++)); do
			rm -f "chain$n.qcow2"
			qemu-img create -q -f qcow2 -u -b "$top" -F qcow2 "chain$n.qcow2" 64M
			top=$LAB_WORK/chain$n.qcow2
		done
		disks=("$top")
		guest_up g reboot=destroy mem=128 tick=1000 "${disks[@]}"
	}
	grow still-chain-$depth 1 --no-live
done
for rate in 1 4; do
	boot() {
		disks_up 1
		guest_up g reboot=destroy tries=8 type=pvh mem=256 tick=1000 extra=dirty_mb=$rate "${disks[@]}"
	}
	grow "dirty-$rate" 1
done
for mem in 128 512 2048; do
	boot() {
		disks_up 1
		guest_up g reboot=destroy tries=8 type=pvh mem=$mem tick=1000 "${disks[@]}"
	}
	grow live-$mem-1 1
done
