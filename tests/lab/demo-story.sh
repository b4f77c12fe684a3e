#!/bin/bash
# The story, told in dom0: see demo.
export LAB_WORK=/srv/lab/demo LAB_LOGS=/tmp/demo-logs
rm -rf "$LAB_WORK" "$LAB_LOGS" /var/lib/xen/snapshots/web1
mkdir -p "$LAB_WORK" "$LAB_LOGS"
. /lab/t/lib.sh

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() {
	printf '\033[1m$ %s\033[0m\n' "$*"
	"$@"
}
guest() { printf 'the guest says: %s\n' "$(console web1 | tr -d '\r' | grep -E '^(TICK|TORN)' | tail -n 1)"; }

trap 'xl destroy web1 2>/dev/null || :' EXIT
say "A guest with two qcow2 disks. Each second it checks that memory and disks agree, and counts on."
qcow2 root.qcow2 64M
qcow2 data.qcow2 64M
guest_up web1 type=pvh root.qcow2 data.qcow2
wait_tick web1 3
guest

say "What would a snapshot do? One disk inside of its file, one by an overlay."
run xl-snapshot create web1 --name before-upgrade --disk xvdb,external --dry-run

say "Take it, while the guest runs."
run xl-snapshot create web1 --name before-upgrade --disk xvdb,external
at=$(tick web1)
guest

say "The guest goes on."
wait_tick web1 $((at + 5))
guest

say "Back to the snapshot: memory and both disks."
mark web1
run xl-snapshot revert web1/before-upgrade
more_ticks web1 3

say "The guest has gone back, and its disks agree with its memory."
went_back_to=$(lab_jumped web1)
echo "the guest went on with number $went_back_to"
guest
((went_back_to <= at + 1)) || fail "the guest did not go back"
[[ $(torn web1) == 0 ]] || fail "memory and disks do not agree"

say "The snapshot is still there."
run xl-snapshot show web1/before-upgrade
