#!/bin/bash
# A new domain beside the original, whose configuration has a fixed VNC display: it takes another one, and says
# so. A socket that cannot be shared is refused by its name, before anything is made.
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 32M
guest_up g tick=300 'cfg=vfb = ["vnc=1,vncunused=0,vncdisplay=7"]' a.qcow2
wait_tick g 2
create g s1.xlsave --name s1
mkdir clones
xl-snapshot revert s1.xlsave --as h2 --overlay-dir "$LAB_WORK/clones" 2>notes.out || fail "exit $?: $(<notes.out)"
cat notes.out >&2
grep -q 'takes the first free display from 7 on' notes.out || fail "it does not say so: $(<notes.out)"
more_ticks h2 3
port() { xenstore-read "/local/domain/0/backend/vfb/$(domid "$1")/0/vncdisplay" 2>/dev/null || :; }
listens() { ss -ltnp 2>/dev/null | grep -c ":59[0-9][0-9] " || :; }
echo "displays: g $(port g), h2 $(port h2); $(listens) listen" >&2
more_ticks g 2
not_torn g
xl destroy h2
xl destroy g
gone g

guest_up k tick=300 "cfg=channel = ['connection=socket,name=agent,path=$LAB_WORK/agent.sock']" a.qcow2
wait_tick k 2
create k s2.xlsave --name s2
refused 3 "a channel to the socket $LAB_WORK/agent.sock" \
	xl-snapshot revert s2.xlsave --as k2 --overlay-dir "$LAB_WORK/clones"
xl destroy k
detail "another display, told; a socket refused by its name"
