#!/bin/bash
# The power fails right after create has reported success: the memory image and all snapshots are there,
# and revert works. What nobody synced is lost, which shows that the cut is one.
# power-cut
# slow
. /lab/t/lib.sh

if [[ -z ${LAB_CUT-} ]]; then
	power_disk up
	lvcreate -qq -y --type thin-pool -n pool -L 64M power
	lvcreate -qq -y -V 32M -n thin --thinpool pool power
	lvcreate -qq -y -n thick -L 32M power
	qcow2 p/a.qcow2 32M
	qcow2 p/b.qcow2 32M
	guest_up g mem=96 tick=300 p/a.qcow2 p/b.qcow2 /dev/power/thin /dev/power/thick
	wait_tick g 3
	# All that is older is safe, so that only what create does is tried.
	sync
	boot=$(boot_id g)
	from=$(tick g)
	xl-snapshot create g --name s1 --memory p/s1.xlsave --no-live -d xvdb,external >report.out
	echo lost >p/marker
	power_cut "$boot $from $(($(tick g) + 1))"
fi

read -r boot from until <<<"$LAB_CUT"
power_disk again
[[ ! -s p/marker ]] || fail "what nobody synced is there: $(<p/marker)"
[[ -e p/marker ]] && lost="empty" || lost="gone"
[[ $(ls p) != *partial* ]] || fail "an unfinished image: $(ls p)"
xl-snapshot show p/s1.xlsave --json >show.json
[[ $(json revertible <show.json) == true ]] || fail "it cannot be reverted to: $(<show.json)"
PYTHONPATH=/lab/xen/lib/python /lab/xen/bin/verify-stream-v2 -q -f xl -i p/s1.xlsave
qemu_img_check_all
xl-snapshot revert -v p/s1.xlsave
more_ticks g 4
not_torn g
first=$(console g | awk '/^TICK [0-9]/ {print $2; exit}')
((first >= from && first <= until)) || fail "it goes on with $first, the snapshot is of $from to $until"
[[ $(boot_id g) == "$boot" ]] || fail "another boot: $(boot_id g), not $boot"
xl destroy g
qemu_img_check_all
lvm_check power
detail "qcow2 internal and external, thin and thick volumes; tick $first of $from to $until; the file that was not synced is $lost"
