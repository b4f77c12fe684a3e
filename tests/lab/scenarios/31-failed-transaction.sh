#!/bin/bash
# The disks' transaction fails: the name is taken behind our back once the plan is made. The guest runs
# on its old disks; no overlay and no image is left.
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 64M; done
guest_up g tick=300 a.qcow2 b.qcow2
wait_tick g 3
monitor=$(xl_monitor_pid g)
before=$(xl list -l g)
xl-snapshot create g --name s1 --memory s1.xlsave --no-live -d xvdb,external 2>errors &
pid=$!
# The memory is being saved as soon as the image grows.
until [[ -s s1.xlsave.partial ]]; do lab_pause 0.05; done
{
	echo '{"execute": "qmp_capabilities"}'
	echo '{"execute": "blockdev-snapshot-internal-sync", "arguments": {"device": "xvda-qcow2", "name": "s1"}}'
	lab_pause 2
} | socat -t 3 - "UNIX:/var/run/xen/qmp-libxl-$(domid g)" >qmp.log
rc=0
wait $pid || rc=$?
cat errors qmp.log >&2
(( $(grep -c '"return"' qmp.log) == 2 )) || fail "the name was not taken: $(<qmp.log)"
((rc == 1)) || fail "exit status $rc instead of 1"
grep -q 'QEMU refused transaction' errors || fail "the error does not name the cause"
[[ ! -e s1.xlsave && ! -e s1.xlsave.partial ]] || fail "an image is left"
[[ ! -e g-xvdb.after-s1.qcow2 ]] || fail "an overlay is left"
[[ $(stat -c %A b.qcow2) == *w* ]] || fail "the base is still read-only"
[[ $before == "$(xl list -l g)" ]] || fail "libxl's configuration changed"
[[ $(xl_monitor_pid g) == "$monitor" ]]
more_ticks g 3
not_torn g
# And it works the next time.
create g s2.xlsave --name s2 --no-live -d xvdb,external
xl destroy g
qemu_img_check_all
detail "exit 1, everything as before"
