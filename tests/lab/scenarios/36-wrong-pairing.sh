#!/bin/bash
# Memory and disks that do not belong together are noticed before anything changes, and what a guest
# writes into its raw disk is never taken for an image format. At the end the unharmed set goes back.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
for disk in a b c; do qcow2 $disk.qcow2 32M; done
# As a guest may write it: a raw disk whose content says that it is a qcow2 image on top of a file of
# dom0. It is too small for the guest to count on, so it stays as it is.
qemu-img create -q -u -f qcow2 -F raw -b /etc/shadow d.img 1M
guest_up g mem=96 tick=300 a.qcow2 b.qcow2 c.qcow2 \
	"format=raw,vdev=xvdd,access=rw,backendtype=qdisk,target=$w/d.img"
wait_tick g 2
create g s1.xlsave --name s1 --no-live -d xvdb,external
xl destroy g
# Stays raw: $1 is an overlay on d.img, with the same content and nothing below.
stays_raw() {
	qemu-img info -U --backing-chain --output=json -f qcow2 "$1" >chain.out
	grep -q '"backing-filename-format": "raw"' chain.out || fail "$1 does not say that its base is raw"
	[[ $(grep -c '"virtual-size"' chain.out) == 2 ]] || fail "more than a raw file is below $1"
	! grep -q shadow chain.out || fail "$1 rests on a file of dom0"
	qemu-img compare -q -U -f qcow2 -F raw "$1" d.img || fail "$1 has not the bytes of d.img"
}
stays_raw g-xvdd.after-s1.qcow2

sums() { sha256sum ./*.qcow2 d.img; stat -c '%n %s %Y %a' ./*; ls; }
mkdir keep
cp -a ./*.qcow2 keep/
# The content, not the file: the inode of a base is part of the proof.
put_back() { for file in "$@"; do cat keep/"$file" >"$file" && touch -r keep/"$file" "$file"; done; }
exchange() { mv "$1" x && mv "$2" "$1" && mv x "$2"; }
good() { xl-snapshot revert s1.xlsave --dry-run >plan.out || fail "refused although nothing is wrong: $1"; }
wrong() {
	local words=$1 before
	before=$(sums)
	refused 3 "$words" xl-snapshot revert s1.xlsave
	xl-snapshot show s1.xlsave --json >show.json || :
	rm -f refused.out
	[[ $(json revertible <show.json) == false ]] || fail "show takes it for sound"
	rm show.json
	[[ $(sums) == "$before" ]] || fail "something changed: $(diff <(echo "$before") <(sums) | xargs)"
}
good "after the create"

# Two disks exchanged: both have a snapshot s1 of the same create, but not at the same nanosecond.
exchange a.qcow2 c.qcow2
wrong 'its snapshot "s1" is another one'
exchange a.qcow2 c.qcow2
exchange b.qcow2 c.qcow2
wrong 'is another file now'
exchange b.qcow2 c.qcow2

# A base is written to, with its time put back; only longer, because nothing tells of bytes that
# changed in place.
cp -a b.qcow2 saved.out
echo more >>b.qcow2
touch -r saved.out b.qcow2
wrong 'was written to since'
put_back b.qcow2
# A copy of it, byte by byte.
mv b.qcow2 b.away
cp -a keep/b.qcow2 b.qcow2
wrong 'is another file now'
mv b.away b.qcow2
rm saved.out
good "after the base came back"

# Another image with a snapshot of that name.
mv a.qcow2 a.away
qcow2 a.qcow2 32M
qemu-img snapshot -c s1 a.qcow2
wrong 'its snapshot "s1" is another one'
rm a.qcow2
# A copy with everything in it, as from a backup, is as good as the file.
cp keep/a.qcow2 a.qcow2
good "with a copy of a qcow2 file"
mv -f a.away a.qcow2

# The snapshot is missing on one of three disks.
qemu-img snapshot -d s1 c.qcow2
wrong 'its snapshot "s1" no longer exists'
# Gone, and another one has its name, with the same number.
qemu-img snapshot -c s1 c.qcow2
wrong 'its snapshot "s1" is another one'
put_back c.qcow2

# Other domains: one of the same name with another UUID, one that has the disks.
xl create -q -p g.cfg
refused 3 'belongs to another domain' xl-snapshot revert s1.xlsave
xl rename g other
refused 3 'used by disk xvda of domain other' xl-snapshot revert s1.xlsave
xl destroy other
put_back a.qcow2 c.qcow2

# Not wrong, but easily mixed up: a second snapshot of the name, and one whose name is the number of
# ours. The right one is put back.
id=$(qemu-img snapshot -l c.qcow2 | awk '$2 == "s1" {print $1}')
qemu-img snapshot -c s1 c.qcow2
qemu-img snapshot -c "$id" a.qcow2
revert g s1.xlsave
stays_raw "$(image_of g xvdd)"
xl destroy g
qemu_img_check_all
detail "$(grep -c '^refused as it should be' "$LAB_LOGS/output.log") pairings refused, nothing changed by any; formats never probed"
