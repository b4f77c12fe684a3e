#!/bin/bash
# The domain's xl process is found whatever became of its log and its program, and never another one; in a
# foreign PID namespace, where no process can be told, nothing is done.
# suite: bookworm  (xl of 4.20 watches on through a suspend and is not held; 20 shows that it does)
# slow
. /lab/t/lib.sh

xl=/lab/xen/bin/xl log=/var/log/xen/xl-g.log
qcow2 a.qcow2 32M
qcow2 b.qcow2 32M
snap=(--no-live -d xvda,external)

# held PID|none [WORDS]: which xl process a create would hold, and what it would say.
held() {
	local seen
	xl-snapshot create g --name dry --memory dry.xlsave "${snap[@]}" --dry-run >dry.out 2>&1 || fail "$(<dry.out)"
	seen=$(sed -n "s/.*stop the domain's xl process \([0-9]*\)$/\1/p" dry.out)
	[[ ${seen:-none} == "$1" ]] || fail "held ${seen:-none} instead of $1: $(<dry.out)"
	[[ ! ${2-} ]] || grep -q "$2" dry.out || fail "no word of '$2': $(<dry.out)"
}

guest_up g mem=96 tick=300 a.qcow2
wait_tick g 2
pid=$(xl_monitor_pid g)
held "$pid"
# logrotate, both ways, and a log that is gone.
mv $log $log.1
: >$log
held "$pid"
rm $log.1
held "$pid"
# An upgrade of the package.
cp -p $xl new-xl && mv new-xl $xl
[[ $(readlink "/proc/$pid/exe") == *'(deleted)' ]] || fail "xl was not replaced: $(readlink "/proc/$pid/exe")"
held "$pid"
create g s1.xlsave --name s1 "${snap[@]}"
kill -0 "$pid" || fail "xl took the suspend for the end of the domain"

# Its log tells nothing any more: its name does, as long as it can be nobody else's.
: >"/proc/$pid/fd/2"
held "$pid"
sed -e 's/"g"/"h"/' -e "s|$LAB_WORK/a|$LAB_WORK/b|" g.cfg >h.cfg
xl create -q -e h.cfg
held none "possible: $pid"
xl destroy h
held "$pid"
xl destroy g
gone g

# In the foreground: into a pipe, and to nowhere.
for out in '| cat >/dev/null' '>/dev/null'; do
	mark g
	eval "xl create -q -F g.cfg 2>&1 $out &"
	wait_line g '^TICK [0-9]'
	pid=$(pgrep -f 'xl create -q -F g.cfg')
	held "$pid"
	rm -f f.xlsave g-xvda.after-f.qcow2
	create g f.xlsave --name f "${snap[@]}"
	kill -0 "$pid" || fail "xl -F took the suspend for the end of the domain"
	xl destroy g
	gone g
	rm -f f.xlsave*
	qemu-img rebase -u -f qcow2 -b '' g-xvda.after-f.qcow2 2>/dev/null || :
	rm -f g-xvda.after-f.qcow2
	chmod u+w a.qcow2
done

# As in a container.
guest_up g mem=96 tick=300 b.qcow2
id=$(domid g)
foreign() { refused 3 'Cannot find the QEMU process' unshare --pid --fork --mount-proc xl-snapshot "$@"; }
foreign create g --name s2 --memory s2.xlsave "${snap[@]}"
create g s3.xlsave --name s3 "${snap[@]}"
foreign revert s3.xlsave
[[ $(domid g) == "$id" ]] || fail "the domain was destroyed"
xl destroy g
detail "rotated, deleted and empty logs, a replaced program, -F; a foreign PID namespace is refused"
