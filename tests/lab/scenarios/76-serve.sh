#!/bin/bash
# serve: a snapshot inside an image that the guest writes to is read by an NBD client; what is served is neither
# deleted nor reverted over; qemu-nbd ends with a serve that is killed. More: 79.
. /lab/t/lib.sh

export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept/g
at=$LAB_WORK/served.sock
uri="nbd+unix:///?socket=$at"

# serve VDEV: serves a disk of s1.
serve() {
	xl-snapshot serve g/s1 "$1" --socket "$at" >serve.out 2>serve-errors.out &
	serve_pid=$!
	until grep -qs '^  at ' serve.out; do
		kill -0 "$serve_pid" 2>/dev/null || fail "serve $1: $(<serve-errors.out)"
		lab_pause 0.3
	done
}

# sum FILE|URI ARGUMENT...: of the content.
sum() {
	local from=$1
	shift
	qemu-img convert "$@" -O raw "$from" sum.out
	sha256sum <sum.out
}

qcow2 a.qcow2 8M
qcow2 b.qcow2 8M
guest_up g tick=300 mem=96 a.qcow2 b.qcow2
wait_tick g 1
create g kept/g/s1.xlsave --name s1 --no-live -d xvda,internal -d xvdb,external

sum=$(sum a.qcow2 -U -f qcow2 -l snapshot.name=s1)
serve xvda
refused 3 'xl-snapshot serve (process' xl-snapshot delete g/s1
refused 3 'xl-snapshot serve (process' xl-snapshot revert g/s1
more_ticks g 1
[[ $(sum "$uri" -f raw) == "$sum" ]] || fail "it is not as at the snapshot"
kill -TERM "$serve_pid"
wait "$serve_pid" || fail "serve ended with $?: $(<serve-errors.out)"
[[ ! -e $at ]] || fail "the socket is left"

serve xvdb
server=$(pgrep -P "$serve_pid")
kill -KILL "$serve_pid"
wait "$serve_pid" || :
end=$((SECONDS + 20))
while kill -0 "$server" 2>/dev/null; do
	((SECONDS < end)) || fail "qemu-nbd lives on"
	lab_pause 0.1
done
xl-snapshot delete -q g/s1 >/dev/null
more_ticks g 1
not_torn g
