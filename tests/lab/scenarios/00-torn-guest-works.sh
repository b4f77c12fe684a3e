#!/bin/bash
# Shows, with stock tools only, that the guest is content with a right revert and notices a wrong
# one. All other scenarios rely on that.
. /lab/t/lib.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
guest_up torn tick=300 a.qcow2 b.qcow2
wait_tick torn 2
boot=$(boot_id torn)

# Memory and disks of one moment: nothing runs between the save and the snapshots.
xl save torn state
before=$(tick torn)
for disk in a b; do
	qemu-img snapshot -c s $disk.qcow2
done

# Resumed, it runs on.
mark torn
xl restore state
more_ticks torn 4
not_torn torn
xl destroy torn

# The right way: all is put back.
for disk in a b; do
	qemu-img snapshot -a s $disk.qcow2
done
mark torn
xl restore state
more_ticks torn 4
not_torn torn
[[ $(boot_id torn) == "$boot" ]] || fail "another boot_id after the revert"
first=$(console torn | awk '/^TICK/ {print $2; exit}')
((first <= before + 1)) || fail "the counter did not go back: $before, then $first"
xl destroy torn

# The wrong way: memory and one of the disks are put back.
qemu-img snapshot -a s a.qcow2
mark torn
xl restore state
wait_line torn '^TORN disk=xvdb ' 20
if console torn | grep '^TORN disk=xvda'; then
	fail "xvda was put back, but is called torn"
fi
detail "right revert silent, wrong one: $(torn torn) TORN lines"
