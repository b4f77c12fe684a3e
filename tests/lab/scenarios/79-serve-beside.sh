#!/bin/bash
# serve: every kind of disk of a snapshot is read by NBD clients while the guest runs on, and attached to another
# guest; what is served is neither deleted nor reverted over.
# slow
. /lab/t/lib.sh

export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept/g
at=$LAB_WORK/served.sock
uri="nbd+unix:///?socket=$at"

# serve VDEV ARGUMENT...: serves a disk of s1.
serve() {
	local vdev=$1
	shift
	xl-snapshot serve g/s1 "$vdev" --socket "$at" "$@" >serve.out 2>serve-errors.out &
	serve_pid=$!
	until grep -qs '^  at ' serve.out; do
		kill -0 "$serve_pid" 2>/dev/null || fail "serve $vdev: $(<serve-errors.out)"
		lab_pause 0.1
	done
	[[ $(stat -c %a "$at") == 600 ]] || fail "others may connect"
}

# served: serve ends by itself, and all it made has gone.
served() {
	wait "$serve_pid" || fail "serve ended with $?: $(<serve-errors.out)"
	[[ ! -e $at ]] || fail "the socket is left"
}

# sum FILE|URI ARGUMENT...: of the content.
sum() {
	local from=$1
	shift
	qemu-img convert "$@" -O raw "$from" sum.out
	sha256sum <sum.out
}

vg_up vg0 100M
lvcreate -qq -y -n l -V 16M --thinpool pool -L 64M vg0
qcow2 a.qcow2 16M
qcow2 b.qcow2 16M
guest_up g tick=300 mem=96 a.qcow2 b.qcow2 /dev/vg0/l
wait_tick g 2
create g kept/g/s1.xlsave --name s1 --no-live -d xvda,internal -d xvdb,external -d xvdc,lvm
declare -A sums=(
	[xvda]=$(sum a.qcow2 -U -f qcow2 -l snapshot.name=s1)
	[xvdb]=$(sum b.qcow2 -U -f qcow2)
	[xvdc]=$(sum /dev/vg0/l.s1 -f raw)
)

for vdev in xvda xvdb xvdc; do
	serve $vdev --once
	[[ $(sum "$uri" -f raw) == "${sums[$vdev]}" ]] || fail "$vdev is not as at the snapshot"
	served
	cell "$vdev" pv serve ok
done
refused 2 'it has xvda, xvdb, xvdc' xl-snapshot serve g/s1 xvdz --socket "$at"

# ---- meanwhile, for the inside of an image that the guest writes to, and a volume

for vdev in xvda xvdc; do
	serve $vdev
	who='xl-snapshot serve (process'
	[[ $vdev == xvda ]] || who='a program has its snapshot vg0/l.s1 open'
	refused 3 "$who" xl-snapshot delete g/s1
	refused 3 "$who" xl-snapshot revert g/s1
	xl-snapshot create -q g --name during-$vdev --no-live -d xvdb,none -d xvdc,none >/dev/null
	more_ticks g 2
	[[ $(sum "$uri" -f raw) == "${sums[$vdev]}" ]] || fail "$vdev has changed while it was served"
	kill -TERM "$serve_pid"
	served
done
not_torn g

# ---- a frozen file: attached to a backup guest, and reverted to meanwhile

serve xvdb
modprobe nbd
qemu-nbd -r -f raw -c /dev/nbd0 "$uri"
[[ $(sha256sum </dev/nbd0) == "${sums[xvdb]}" ]] || fail "the device is not as at the snapshot"
qcow2 k.qcow2 16M
guest_up k mem=96 k.qcow2
xl block-attach k phy:/dev/nbd0,xvdb,r
[[ $(xl block-list k | awk '$1 == 51728 {print $4}') == 4 ]] || fail "it is not attached: $(xl block-list k)"
refused 3 'xl-snapshot serve (process' xl-snapshot delete g/s1
xl block-detach k xvdb
xl destroy k
qemu-nbd -d /dev/nbd0 >/dev/null
# An overlay more changes nothing of it. Of the others nobody reads.
revert g kept/g/s1.xlsave --discard-current
[[ $(sum "$uri" -f raw) == "${sums[xvdb]}" ]] || fail "xvdb has changed while it was served"

# ---- killed: qemu-nbd goes too, and the next one is not in the way of what is left

server=$(pgrep -P "$serve_pid")
kill -KILL "$serve_pid"
wait "$serve_pid" || :
end=$((SECONDS + 20))
while kill -0 "$server" 2>/dev/null; do
	((SECONDS < end)) || fail "qemu-nbd lives on"
	lab_pause 0.1
done
serve xvdb --export-name disk
[[ $(sum "nbd+unix:///disk?socket=$at" -f raw) == "${sums[xvdb]}" ]] || fail "not by its name"
kill -TERM "$serve_pid"
served
xl-snapshot delete -q g/s1 >/dev/null
more_ticks g 2
not_torn g
