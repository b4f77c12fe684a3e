#!/bin/bash
# Each step of a revert that restores first fails once, and the program is killed once after each. Until the new
# domain runs, the old one goes on as if nothing had been; after that the new one does. Nobody has to do
# anything.
# timeout: 1800
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh
. /lab/t/restore-first.sh

qcow2 a.qcow2 64M
vg_up vg0 268M
lvcreate -qq -y --type thin-pool -n pool -L 100M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
guest_up g type=pv mem=96 tick=300 a.qcow2 /dev/vg0/thin
wait_tick g 3
create g s1.xlsave --name s1 --no-live -d xvda,external

# at FAULT STEP: fails if there is no such step.
switched=0 as_before=0
at() {
	local rc=0 out=r$2-$1.out old stood
	old=$(domid g)
	stood=$(stand g)
	mark g
	mark g.restoring
	FAULTS=$2:$1 "$faulty" revert s1.xlsave --restore-first >"$out" 2>&1 || rc=$?
	((rc != 99)) || fail "step $2, $1: $(<"$out")"
	[[ $1 != killed-late || $rc == 0 ]] || ((rc == 137)) || fail "step $2: exit status $rc instead of 137: $(<"$out")"
	reliability "guests lost" 1
	while guard_works; do lab_pause; done
	if [[ $(domid g) == "$old" ]]; then
		((rc != 0)) || fail "step $2, $1: it has succeeded, and the old domain runs"
		unharmed g "$stood"
		as_before=$((as_before + 1))
	else
		first_went_back s1.xlsave
		switched=$((switched + 1))
	fi
	reliability "guests lost" -1
	((rc == 0)) || reliability "fault points" 1
	# A step after the switch that failed is told, with the command; all others are done.
	((rc == 4)) || nothing_between
	intact s1.xlsave
	((rc != 0)) || return 1
}
failed=0 killed=0
while at killed-late "$killed"; do killed=$((killed + 1)); done
while at fails "$failed"; do
	failed=$((failed + 1))
	# What a failed step after the switch has left is in the way of the next.
	for other in $(xl list | awk '$1 ~ /^g\./ {print $1}'); do xl destroy "$other"; done
done
((as_before > 8 && switched > 4)) || fail "$as_before times as before, $switched times switched"
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "killed after $killed steps, $failed failed: $as_before times all was as before, $switched times the new one ran"
