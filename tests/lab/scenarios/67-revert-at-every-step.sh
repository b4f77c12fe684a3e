#!/bin/bash
# Each step of a revert fails once, after it has done its work, and the program is killed once after each. All
# disks are QEMU's alone, so that they are put back while libxl still destroys the domain. The snapshot is
# never harmed, and a repeated revert brings the guest back.
# timeout: 1800
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
guest_up g type=pv mem=96 tick=300 a.qcow2 b.qcow2
wait_tick g 3
create g s1.xlsave --name s1 --no-live

# What was kept of earlier contents.
kept() { qemu-img snapshot -U -l a.qcow2 | grep -c before-revert || :; }

# at FAULT STEP: fails if there is no such step.
at() {
	local rc=0 out=r$2-$1.out before
	before=$(kept)
	mark g
	FAULTS=$2:$1 "$faulty" revert s1.xlsave >"$out" 2>&1 || rc=$?
	((rc != 0)) || return 1
	((rc != 99)) || fail "step $2, $1: $(<"$out")"
	[[ $1 != killed-late ]] || ((rc == 137)) || fail "step $2: exit status $rc instead of 137: $(<"$out")"
	while guard_works; do lab_pause; done
	reliability "fault points" 1
	intact s1.xlsave
	# Put back as it was: there is nothing more to keep.
	if ! domid g >/dev/null; then
		(($(kept) == before)) || fail "step $2, $1: $(kept) contents are kept instead of $before"
		left_down=$((left_down + 1))
		[[ $1 == killed-late ]] || [[ $(grep -m 1 '^xl-snapshot: ' "$out") == 'xl-snapshot: Domain g is down: '* ]] ||
			fail "step $2, $1: it does not begin with what is down: $(<"$out")"
	fi
	# What is kept of each is in nobody's way.
	xl-snapshot revert s1.xlsave >again.out 2>again.err.out
	! grep -q 'killed the guard' again.err.out || fail "nobody did: $(<again.err.out)"
	went_back g s1.xlsave
}
failed=0 killed=0 left_down=0
while at fails-late "$failed"; do failed=$((failed + 1)); done
while at killed-late "$killed"; do killed=$((killed + 1)); done
((left_down > 4)) || fail "only $left_down times the domain was down"
((failed > 5 && killed > 5)) || fail "$failed steps failed, $killed were the last ones"
xl destroy g
qemu_img_check_all
detail "$failed steps failed, after $killed the program was killed; each time a revert brought the guest back"
