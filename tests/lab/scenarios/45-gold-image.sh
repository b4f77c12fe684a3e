#!/bin/bash
# Ten new domains from one snapshot at the same time, beside the running original; one more is killed on
# its way, and one is made when the original was put back.
# timeout: 500
. /lab/t/lib.sh
. /lab/t/gold.sh

qcow2 h.qcow2 64M
qcow2 i.qcow2 64M
guest_up h tick=3000 mem=96 h.qcow2 i.qcow2 'cfg=vif = ["mac=00:16:3e:5a:5a:02,bridge=xenbr0"]'
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
detail "ten at the same time in $parallel ms, one alone $one ms; the original runs on"
