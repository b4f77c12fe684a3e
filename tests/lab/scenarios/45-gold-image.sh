#!/bin/bash
# New domains from one snapshot: one with a disk of every kind, beside the running original; ten at the
# same time; and again, while the original is put back.
# timeout: 600
. /lab/t/kinds.sh

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

ip link show xenbr0 >/dev/null 2>&1 || ip link add xenbr0 type bridge
ip link set xenbr0 up
mkdir new
kinds_up g type=pv tick=500 'cfg=vif = ["mac=00:16:3e:5a:5a:01,bridge=xenbr0"]'
# The disk that tapdisk or QEMU serves from a VHD becomes a base as well.
create g gold.xlsave --name gold --no-live -d xvdb,external -d xvdf,reflink
before=$(volumes vg0)
xl-snapshot revert gold.xlsave --as c --overlay-dir new --dry-run >plan.out
[[ -z $(ls new) && $(volumes vg0) == "$before" ]] || fail "a dry run made something"
xl-snapshot revert -v gold.xlsave --as c --overlay-dir new >c.out
went_on c gold.xlsave
grep -q 'is a new domain from snapshot gold of g' c.out || fail "$(<c.out)"
[[ -z $(identities | sort | uniq -d) ]] || fail "shared: $(identities)"
[[ $(lvs --noheadings -o lv_name vg0/thin.c | xargs) == thin.c ]] || fail "no thin volume"
more_ticks g 2
not_torn g

refused 3 'There is a domain c already' xl-snapshot revert gold.xlsave --as c --overlay-dir new
refused 3 'There is a domain Domain-0' xl-snapshot revert gold.xlsave --as Domain-0 --overlay-dir new
refused 2 'overlay-dir' xl-snapshot revert gold.xlsave --as d
refused 2 'all digits' xl-snapshot revert gold.xlsave --as 77 --overlay-dir new
refused 3 'exist' xl-snapshot revert gold.xlsave --as d --overlay-dir nowhere
xl destroy c
refused 3 'exists' xl-snapshot revert gold.xlsave --as c --overlay-dir new
mkdir keep
xl-snapshot revert -q gold.xlsave --as k --overlay-dir keep --keep-macs --paused --json >k.json
[[ $(json clone_of <k.json) == g && $(json paused <k.json) == true ]] || fail "$(<k.json)"
xl list -l k | grep -q '5a:5a:01' || fail "the address was not kept"
[[ $(xl list k | awk 'END {print $5}') == --p* ]] || fail "k is not paused"
xl unpause k
went_on k gold.xlsave
xl destroy k
revert g gold.xlsave
qemu_img_check_all
lvremove -qqy vg0/thin.c vg0/thin.k
xl destroy g
umount x

# Ten from one, all at the same time and without the original; a killed one leaves nothing.
qcow2 h.qcow2 64M
raw i.img 64M
guest_up h tick=500 mem=96 h.qcow2 i.img 'cfg=vif = ["mac=00:16:3e:5a:5a:02,bridge=xenbr0"]'
wait_tick h 2
create h h.xlsave --name h1 -d xvda,external -d xvdb,external
mkdir ten
begin=$EPOCHREALTIME
pids=()
for n in {1..10}; do
	xl-snapshot revert -q h.xlsave --as "h$n" --overlay-dir ten >"h$n.out" 2>"h$n.err.out" &
	pids+=($!)
done
xl-snapshot revert -q h.xlsave --as killed --overlay-dir ten >killed.out 2>&1 &
victim=$!
lab_pause 3
kill -KILL $victim
for pid in "${pids[@]}"; do wait "$pid" || fail "$(cat h*.err.out)"; done
parallel=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
for n in {1..10}; do went_on "h$n" h.xlsave; done
for ((i = 0; i < 200; i++)); do pgrep xl-snap-guard >/dev/null || break; lab_pause; done
domid killed && fail "a killed one is there"
[[ -z $(find ten -name 'killed*') ]] || fail "left: $(ls ten)"
[[ $(xl list | grep -c '^h[0-9]') == 10 ]] || fail "$(xl list)"
[[ -z $(identities | sort | uniq -d) ]] || fail "shared: $(identities)"
not_torn h
more_ticks h 2
# The snapshot is as good as ever: for a domain of its own and for one more.
for n in {1..10}; do xl destroy "h$n"; done
revert h h.xlsave
begin=$EPOCHREALTIME
xl-snapshot revert -q h.xlsave --as one --overlay-dir ten >one.out
one=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
went_on one h.xlsave
xl destroy one
xl destroy h
qemu_img_check_all
detail "one with every kind of disk; ten at the same time in $parallel ms, one alone $one ms; the original runs on"
