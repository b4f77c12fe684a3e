#!/bin/bash
# Plain images whose pages are aligned, with holes and checksums: stock tools read them, and a changed byte is found.
. /lab/t/lib.sh

qcow2 a.qcow2 64M
guest_up g tick=300 a.qcow2
wait_tick g 3
live=()
for name in s1 s2; do
	create g $name.xlsave --name $name "${live[@]}"
	live=(--no-live)
	read -r length blocks < <(stat -c '%s %b' $name.xlsave)
	((blocks * 512 < length)) || fail "$name has no holes: $length bytes, $blocks blocks"
	PYTHONPATH=/lab/xen/lib/python /lab/xen/bin/verify-stream-v2 -f xl -i $name.xlsave
	xl-snapshot show --verify --json $name.xlsave >shown.json
	[[ $(json verified <shown.json) == checksums ]] || fail "$name has no checksums"
	(($(json size_on_disk <shown.json) < $(json size <shown.json))) || fail "show does not tell of the holes"
	more_ticks g 2
done
not_torn g
# A flipped bit in a page that is no hole.
cp --sparse=always s1.xlsave damaged
at=$((length / 4096 / 2 * 4096))
while [[ -z $(dd if=damaged bs=4096 skip=$((at / 4096)) count=1 2>/dev/null | tr -d '\0' | head -c 1) ]]; do
	at=$((at + 4096))
done
byte=$(od -An -tu1 -j $((at + 77)) -N 1 damaged)
printf "\\x$(printf %x $((byte ^ 16)))" | dd of=damaged bs=1 seek=$((at + 77)) conv=notrunc 2>/dev/null
refused 3 'is not what was saved' xl-snapshot show --verify damaged
# Without us.
for name in s2 s1; do
	xl destroy g
	lab_pause 1
	qemu-img snapshot -a $name a.qcow2
	mark g
	xl restore $name.xlsave
	went_back g $name.xlsave
done
# And with us.
mark g
xl-snapshot revert s2.xlsave
went_back g s2.xlsave
not_torn g
detail "s2: $((length >> 20)) MiB, $((blocks >> 11)) MiB on disk"
