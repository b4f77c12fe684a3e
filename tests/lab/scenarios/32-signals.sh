#!/bin/bash
# SIGTERM and SIGINT in the middle of the save, and a save that takes longer than the guest may stand still:
# everything is undone and the guest goes on; it is looked at again later, because a guest may obey the
# request to suspend after all.
. /lab/t/lib.sh

qcow2 a.qcow2 64M
guest_up g tick=300 a.qcow2
wait_tick g 3
monitor=$(xl_monitor_pid g)
cut_short=(--name s1 --memory s1.xlsave --no-live -d xvda,external)
as_before() {
	[[ -z $(ls | grep -e xlsave -e after) ]] || fail "something is left: $(ls)"
	[[ $(stat -c %A a.qcow2) == *w* ]] || fail "the base is still read-only"
	[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "the xl process is gone"
	more_ticks g 10
	not_torn g
}
for signal in TERM INT; do
	# A background job of a script ignores SIGINT; a shell of its own with job control does not.
	(
		set -m
		xl-snapshot create g "${cut_short[@]}" 2>errors &
		echo $! >pid
		rc=0
		wait $! || rc=$?
		echo $rc >code
	) &
	# In the middle of the memory, not before it.
	until [[ -f pid && $(stat -c %s s1.xlsave.partial 2>/dev/null || echo 0) -gt 20000000 ]]; do lab_pause 0.05; done
	kill -$signal "$(<pid)"
	wait $!
	[[ $(<code) == 1 ]] || fail "exit status $(<code) after SIG$signal: $(<errors)"
	as_before
	rm -f pid code
done
refused 1 'was paused for longer than 0.3 s' xl-snapshot create g "${cut_short[@]}" --max-pause 0.3
as_before
create g s1.xlsave --name s1 --no-live -d xvda,external --max-pause 60
revert g s1.xlsave
xl destroy g
qemu_img_check_all
detail "exit 1, everything as before, and the next create works"
