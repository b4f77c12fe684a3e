#!/bin/bash
# A busy guest makes its image several times as large as its memory. The save is given up before the file
# system is full, where another guest's sparse disk grows. A guest whose images will soon have no room is
# told of.
# slow
. /lab/t/lib.sh

truncate -s 2G small.fs
mkfs.ext4 -q -m 0 small.fs
mkdir small
mount -o loop small.fs small
raw small/other.img 200M
qcow2 a.qcow2 64M
guest_up other type=pv small/other.img
guest_up g type=pvh mem=160 extra=dirty_mb=64 a.qcow2
wait_tick g 2

# 500 MiB are left; the memory must have 192, and 256 are for others.
fallocate -l $(($(stat -f -c '%a * %S' small) - (500 << 20))) small/filler

lowest() {
	local free least=$((1 << 40))
	until [[ -e stop.out ]]; do
		free=$(($(stat -f -c '%a * %S' small)))
		((free >= least)) || least=$free
	done
	echo "$least" >least.out
}
lowest &
watcher=$!
before=$(stand g)
refused 1 "was given up" xl-snapshot create g --memory "$PWD/small/g.xlsave" --name busy
touch stop.out
wait "$watcher"
least=$(<least.out)
((least > 200 << 20)) || fail "only $((least >> 20)) MiB were free"
unharmed g "$before"
not_torn other
[[ ! -e small/g.xlsave.partial ]] || fail "the image stays"

# What stands still is no larger than its memory.
expect_exit 0 xl-snapshot create g --memory "$PWD/small/g.xlsave" --name still --no-live
rm small/g.xlsave

# A preallocated disk needed no room; its overlay does.
fallocate -l $(($(stat -f -c '%a * %S' small) - (20 << 20))) small/more
qemu-img create -q -f raw -o preallocation=full full.img 64M
mkdir tiny
truncate -s 100M tiny.fs
mkfs.ext4 -q -m 0 tiny.fs
mount -o loop tiny.fs tiny
mv full.img tiny/full.img
guest_up p type=pv "format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=$PWD/tiny/full.img"
wait_tick p 2
xl-snapshot create p --name s1 --memory p.xlsave --dry-run >plan.out 2>&1
grep -q "tiny has .* left, from which xvda takes" plan.out || fail "not a word of the room: $(<plan.out)"
detail "$((least >> 20)) MiB were always free"
