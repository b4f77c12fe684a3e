#!/bin/bash
# A guest that does not answer the suspend request: libxl gives up after a minute, the guest goes on,
# nothing is left.
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
# Without this part of its kernel it does not look at the request.
guest_up g tick=300 mem=96 'extra=initcall_blacklist=xen_setup_shutdown_event' a.qcow2 b.qcow2
wait_tick g 2
monitor=$(xl_monitor_pid g)
stand() { find . -name 'a*' -o -name 'b*' -o -name 'g-*' -o -name '*.xlsave*'; stat -c '%n %A' ./*.qcow2; xl list -l g; }
before=$(stand)
from=$SECONDS
refused 1 'the guest did not answer' xl-snapshot create g --name s1 --memory s1.xlsave --no-live -d xvdb,external
seconds=$((SECONDS - from))
[[ $before == "$(stand)" ]] || fail "something is left: $(diff <(echo "$before") <(stand))"
more_ticks g 3
not_torn g
[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "the xl process is gone"
[[ $(ps -o stat= -p "$monitor") != T* ]] || fail "the xl process is still held"
cell "any" "without Xen drivers" create "refused by libxl after a minute"
detail "given up after $seconds s"
