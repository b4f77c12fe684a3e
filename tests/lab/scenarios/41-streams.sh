#!/bin/bash
# Images through zstd(1) and compressed by the program itself: both ways back, with stock tools too;
# what is truncated or damaged is noticed; a full disk in the middle of the save leaves nothing.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
qcow2 a.qcow2 64M
guest_up g mem=96 tick=300 a.qcow2
wait_tick g 3
monitor=$(xl_monitor_pid g)

# The disk fills up while the memory is compressed. ext2 cannot reserve space beforehand, so that it is
# the compressor's write that fails, not the plan and not the reservation; or we see it coming.
truncate -s 64M small.img
mkfs.ext2 -q small.img
mkdir small
mount -o loop small.img small
xl-snapshot create g --name full --memory small/full.xlsave.zst --no-live --compress zstd:9 -d xvda,external 2>errors &
pid=$!
until [[ -s small/full.xlsave.zst.partial ]]; do lab_pause 0.05; done
dd if=/dev/zero of=small/filler bs=1M 2>/dev/null && fail "the disk is not full"
rc=0
wait $pid || rc=$?
cat errors >&2
((rc == 1)) || fail "exit status $rc instead of 1 on a full disk"
grep -q 'No space left\|its file system has only' errors || fail "the error does not name the cause: $(<errors)"
[[ -z $(find . -name '*full.xlsave*' -o -name '*after*') ]] || fail "something is left: $(find .)"
[[ $(stat -c %A a.qcow2) == *w* ]] || fail "the base is still read-only"
[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "the xl process is gone"
umount small
more_ticks g 2
not_torn g

# Through zstd(1), there and back.
lab_boot[piped]=$(boot_id g) lab_from[piped]=$(tick g)
xl-snapshot create g --name piped --memory - --no-live -q | zstd -q -1 >piped.zst
lab_until[piped]=$(($(tick g) + 1))
wait_tick g $((lab_until[piped] + 2))
mark g
zstd -dcq piped.zst | xl-snapshot revert -
went_back g piped
# As it is, it is understood as well.
xl-snapshot show - --verify <piped.zst >show.out
grep -q 'piped of g' show.out || fail "show: $(<show.out)"

# Compressed by the program.
create g packed.xlsave.zst --name packed --no-live --compress zstd:1
[[ $(json image_size <packed.xlsave.zst.json) == $(stat -c %s packed.xlsave.zst) ]] || fail "the size is not that of the file"
zstd -dcq packed.xlsave.zst >plain.xlsave
(($(stat -c %s packed.xlsave.zst) * 3 < $(stat -c %s plain.xlsave) * 2)) || fail "it is not compressed"
PYTHONPATH=/lab/xen/lib/python \
	/lab/xen/bin/verify-stream-v2 -f xl -i plain.xlsave
xl-snapshot show packed.xlsave.zst --verify >show.out
grep -q 'its checksums are right' show.out || fail "show: $(<show.out)"
xl-snapshot show plain.xlsave --verify >show.out
grep -q 'it has no checksums' show.out || fail "show: $(<show.out)"

# Truncated: noticed before anything is touched.
id=$(domid g)
size=$(stat -c %s packed.xlsave.zst)
for cut in 1 100000; do
	head -c $((size - cut)) packed.xlsave.zst >bad.xlsave.zst
	refused 3 'truncated' xl-snapshot show bad.xlsave.zst --verify
	refused 3 'truncated' xl-snapshot revert bad.xlsave.zst
done
# A few changed bytes: noticed by --verify. By revert only on the way, and then the guest does not run
# on such memory; the good image brings it back.
cp packed.xlsave.zst bad.xlsave.zst
printf 'damaged!' | dd of=bad.xlsave.zst bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
refused 3 'damaged' xl-snapshot show bad.xlsave.zst --verify
[[ $(domid g) == "$id" ]] || fail "a refusal destroyed the domain"
rc=0
xl-snapshot revert bad.xlsave.zst 2>errors || rc=$?
cat errors >&2
((rc == 4 || rc == 3)) || fail "exit status $rc for a damaged image"
if ((rc == 4)); then
	grep -q 'damaged' errors || fail "the error does not name the cause"
	! domid g || fail "the guest was restored from a damaged image"
fi
revert g packed.xlsave.zst

# Without us.
xl destroy g
lab_pause 1
qemu-img snapshot -a packed a.qcow2
mark g
zstd -dcq packed.xlsave.zst | xl restore /dev/stdin
went_back g packed.xlsave.zst
xl destroy g
qemu_img_check_all
detail "$(($(stat -c %s plain.xlsave) >> 20)) MiB compressed to $((size >> 20)) MiB; pause $(ms "$(json pause_ms <packed.xlsave.zst.json)") ms"
