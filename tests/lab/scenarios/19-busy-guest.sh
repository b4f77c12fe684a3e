#!/bin/bash
# A guest that writes to its memory faster than that is saved live. How much of it was left when the guest stood
# still is told; with --max-pause it goes on as it was instead.
# timeout: 400
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 64M
guest_up g type=pvh mem=256 tick=1000 extra=dirty_mb=64 a.qcow2
wait_tick g 2
refused 1 'has stood still for longer than 0.2 s' \
	xl-snapshot create g --name s1 --memory s1.xlsave -d xvda,external --max-pause 0.2
[[ -z $(ls | grep -e xlsave -e after) ]] || fail "something is left: $(ls)"
[[ $(stat -c %A a.qcow2) == *w* ]] || fail "the base is still read-only"
more_ticks g 3
not_torn g
create g s1.xlsave --name s1 -d xvda,external 2>create.log || fail "no snapshot: $(<create.log)"
cat create.log >&2
words=$(grep -o 'after [0-9]* rounds, [0-9]* MiB were left to save' create.log) || fail "the pause is not explained"
revert g s1.xlsave
more_ticks g 3
xl destroy g
qemu_img_check_all
detail "$words; pause $(ms "$(json pause_ms <s1.xlsave.json)") ms"
