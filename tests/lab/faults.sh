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

# goes_on SECONDS: by then the guest counts, its xl process is awake and nobody puts anything in order
# any more.
goes_on() {
	local - begin=$SECONDS
	{ set +x; } 2>/dev/null
	# Lost until it is seen: a scenario that fails here leaves it so in the report.
	reliability "guests lost" 1
	more_ticks g 2 "$1"
	while guard_works; do
		((SECONDS - begin < $1)) || fail "the guard still works after $1 s"
		lab_pause 0.1
	done
	[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "another xl process watches g"
	[[ $(ps -o stat= -p "$monitor") != T* ]] || fail "the xl process is stopped"
	not_torn g
	reliability "guests lost" -1
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
	file=$(grep -lxs "$1" /proc/[1-9]*/comm) || return 1
	file=${file%%$'\n'*}
	file=${file#/proc/}
	echo "${file%/comm}"
}

# reliability KIND N: counted in the report of `make test`.
reliability() { printf '%s\t%s\n' "$@" >>"$LAB_LOGS/reliability"; }
