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
