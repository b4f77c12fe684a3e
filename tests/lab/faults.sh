# Sourced by the scenarios in which the program fails or is killed. Needs lib.sh.
# shellcheck shell=bash

faulty=/usr/local/sbin/xl-snapshot-faults

# faults_up TYPE: a guest g with a disk of each kind that is snapshotted in a way of its own: inside of
# the image, by an overlay, by a volume.
faults_up() {
	qcow2 a.qcow2 64M
	qcow2 b.qcow2 64M
	vg_up vg0 200M
	lvcreate -qq -y -n l -L 8M vg0
	guest_up g "type=$1" mem=96 tick=300 a.qcow2 b.qcow2 /dev/vg0/l
	wait_tick g 3
	monitor=$(xl_monitor_pid g)
}

# goes_on SECONDS: by then the guest counts and its xl process is awake; and soon nobody puts anything in
# order any more.
goes_on() {
	local - begin=$SECONDS
	{ set +x; } 2>/dev/null
	# Lost until it is seen: a scenario that fails here leaves it so in the report.
	reliability "guests lost" 1
	more_ticks g 2 "$1"
	while [[ $(ps -o stat= -p "$monitor") == T* ]]; do
		((SECONDS - begin < $1)) || fail "the xl process is stopped after $1 s"
	done
	# What it removes then is in nobody's way.
	while guard_works; do
		((SECONDS - begin < 30)) || fail "the guard still works after 30 s"
		lab_pause 0.1
	done
	[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "another xl process watches g"
	not_torn g
	reliability "guests lost" -1
}

# kill_at STEP: has a create of g killed after one of its steps, counted from 0: by SIGKILL, so that it can
# do nothing more. Its guard takes everything back (undone) or completes the snapshot (completed).
# Fails if there is no such step.
undone=0 completed=0
kill_at() {
	local before rc=0 image=s$1.xlsave
	before=$(stand g)
	FAULTS=$1:killed-late "$faulty" create g --no-live --name "s$1" --memory "$image" \
		-d xvdb,external >"s$1.out" 2>"s$1.err.out" || rc=$?
	((rc != 0)) || return 1
	((rc == 137)) || fail "step $1: exit status $rc instead of 137: $(<"s$1.err.out")"
	goes_on 10
	reliability "kills survived" 1
	if [[ -e $image ]]; then
		intact "$image"
		grep -q 'carried out to its end' "s$1.err.out" || fail "step $1: the guard said: $(<"s$1.err.out")"
		completed=$((completed + 1))
		first=${first-$image}
	else
		grep -q 'everything is as it was' "s$1.err.out" || fail "step $1: the guard said: $(<"s$1.err.out")"
		[[ $before == "$(stand g)" ]] || fail "step $1: $(diff <(echo "$before") <(stand g))"
		undone=$((undone + 1))
	fi
}

# intact IMAGE: the snapshot can be reverted to.
intact() {
	reliability "snapshots damaged" 1
	xl-snapshot show "$1" >show.out || fail "$1 is damaged: $(<show.out)"
	grep -q 'can be reverted to' show.out || fail "$1 is damaged: $(<show.out)"
	reliability "snapshots damaged" -1
}

# guard_works: whether there is a guard process.
guard_works() { pid_of xl-snap-guard >/dev/null; }

# pid_of NAME: of a process with this name (the kernel keeps 15 characters of it), or fails.
pid_of() {
	local - file
	{ set +x; } 2>/dev/null
	# It fails when a process ends under its eyes.
	file=$(grep -lxs "$1" /proc/[1-9]*/comm || :)
	[[ -n $file ]] || return 1
	file=${file%%$'\n'*}
	file=${file#/proc/}
	echo "${file%/comm}"
}

# reliability KIND N: counted in the report of `make test`.
reliability() { printf '%s\t%s\n' "$@" >>"$LAB_LOGS/reliability"; }

# revert_at FAULT STEP: a revert of g to s1.xlsave in which one step fails or is the last one, and a second
# that brings the guest back. Fails if there is no such step. The scenario's kept prints how many earlier
# contents are kept.
revert_at() {
	local rc=0 out=r$2-$1.out before first
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
		# Without a QEMU, to destroy a domain has ended when it returns, and cannot fail then but here.
		first=$(grep -m 1 '^xl-snapshot: ' "$out" || :)
		[[ $1 == killed-late || $first == 'xl-snapshot: Domain g is down: '* || $first == *'could not destroy domain '* ]] ||
			fail "step $2, $1: it does not begin with what is down: $(<"$out")"
	fi
	# What is kept of each is in nobody's way.
	xl-snapshot revert s1.xlsave >again.out 2>again.err.out
	! grep -q 'killed the guard' again.err.out || fail "nobody did: $(<again.err.out)"
	went_back g s1.xlsave
}

# Each step of a revert fails once after its work, and the program is killed once after each.
failed=0 killed=0 left_down=0
revert_at_every_step() {
	while revert_at fails-late "$failed"; do failed=$((failed + 1)); done
	while revert_at killed-late "$killed"; do killed=$((killed + 1)); done
	((left_down > 4)) || fail "only $left_down times the domain was down"
	((failed > 5 && killed > 5)) || fail "$failed steps failed, $killed were the last ones"
}
