# Sourced by the scenarios that make new domains from one snapshot. Needs lib.sh.
# shellcheck shell=bash

# went_on NAME IMAGE: a new domain goes on from the moment of the snapshot, with disks that agree,
# watched by xl.
went_on() {
	local name=$1 image=$2 first
	lab_mark[$name]=0
	more_ticks "$name" 2 120
	not_torn "$name"
	first=$(console "$name" | awk '/^TICK [0-9]+ boot=/ {print $2; exit}')
	((first >= lab_from[$image] && first <= lab_until[$image] + 1)) ||
		fail "$name goes on with $first, $image is of ${lab_from[$image]} to ${lab_until[$image]}"
	[[ $(boot_id "$name") == "${lab_boot[$image]}" ]] || fail "$name: another boot after $image"
	xl_monitor_pid "$name" >/dev/null || fail "$name has no xl process"
}

# identities: the UUID and the MAC address of every guest.
identities() { xl list -l | grep -E '"(uuid|mac)"'; }

# A bridge for the guests' network interfaces.
ip link show xenbr0 >/dev/null 2>&1 || ip link add xenbr0 type bridge
ip link set xenbr0 up

# many_from_one COUNT: new domains at the same time, beside the running original; one more is killed on its
# way, and one is made when the original was put back.
many_from_one() {
	local count=$1 n i pid pids=() victim begin parallel one
	qcow2 h.qcow2 64M
	qcow2 i.qcow2 64M
	guest_up h tick=3000 mem=96 h.qcow2 i.qcow2 'cfg=vif = ["mac=00:16:3e:5a:5a:02,bridge=xenbr0"]'
	wait_tick h 2
	create h h.xlsave --name h1 -d xvda,external -d xvdb,external
	mkdir new
	begin=$EPOCHREALTIME
	for n in $(seq "$count"); do
		xl-snapshot revert -q h.xlsave --as "h$n" --overlay-dir new >"h$n.out" 2>"h$n.err.out" &
		pids+=($!)
	done
	xl-snapshot revert -q h.xlsave --as killed --overlay-dir new >killed.out 2>&1 &
	victim=$!
	lab_pause 3
	kill -KILL $victim
	for pid in "${pids[@]}"; do wait "$pid" || fail "$(cat h*.err.out)"; done
	parallel=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
	for n in $(seq "$count"); do went_on "h$n" h.xlsave; done
	for ((i = 0; i < 200; i++)); do pgrep xl-snap-guard >/dev/null || break; lab_pause; done
	domid killed && fail "a killed one is there"
	[[ -z $(find new -name 'killed*') ]] || fail "left: $(ls new)"
	[[ $(xl list | grep -c '^h[0-9]') == "$count" ]] || fail "$(xl list)"
	[[ -z $(identities | sort | uniq -d) ]] || fail "shared: $(identities)"
	not_torn h
	more_ticks h 2
	# The snapshot is as good as ever: for a domain of its own and for one more.
	for n in $(seq "$count"); do xl destroy "h$n"; done
	revert h h.xlsave
	begin=$EPOCHREALTIME
	xl-snapshot revert -q h.xlsave --as one --overlay-dir new >one.out
	one=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
	went_on one h.xlsave
	xl destroy one
	xl destroy h
	qemu_img_check_all
	detail "$count at the same time in $parallel ms, one alone $one ms; the original runs on and was put back"
}
