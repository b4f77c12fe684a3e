#!/bin/bash
# Eight qcow2 disks in one transaction. QEMU takes internal snapshots one after the other, each with
# its own writes and flushes, so the pause grows with their number; it must not grow by more than that.
# slow
. /lab/t/lib.sh

disks=()
for disk in a b c d e f g h; do
	qcow2 $disk.qcow2 32M
	disks+=($disk.qcow2)
done
guest_up g mem=96 tick=1000 "${disks[@]}"
wait_tick g 2
# transaction N: how long the transaction of N disks takes, in ms; the better of two, because the
# emulator only ever adds.
transaction() {
	local n=$1 best='' i ms options=()
	for i in b c d e f g h; do [[ $n == 8 ]] || options+=(-d "xvd$i,none"); done
	for i in 1 2; do
		xl-snapshot create g -v --name "d$n-$i" --memory "d$n-$i.xlsave" --no-live "${options[@]}" 2>steps.out >report.out
		ms=$(ms "$(awk '/QMP transaction/ {print $1}' steps.out)")
		[[ $best ]] && ((best <= ms)) || best=$ms
	done
	echo "$best"
}
one=$(transaction 1)
eight=$(transaction 8)
# Six flushes and ten writes for each disk take QEMU about 100 ms here.
((eight < one + 7 * 200)) || fail "the transaction of 8 disks takes $eight ms, of one $one ms"
create g last.xlsave --name last --no-live
revert g last.xlsave
xl destroy g
qemu_img_check_all
cell "internal, 8 disks" pv "not live" ok
cell "internal, 8 disks" pv revert ok
detail "transaction $eight ms with 8 disks, $one ms with one"
