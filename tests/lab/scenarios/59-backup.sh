#!/bin/bash
# backup: a guest under load is backed up, quiesced by its real qemu-ga, and runs on its own images again; an export that
# fails and a backup that is killed leave nothing behind, the latter once the next one has run.
# slow
. /lab/t/lib.sh
. /lab/t/quiesce.sh

export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept to
agent_initramfs
mkfs.ext4 -F -q a.raw 32M
mkfs.ext4 -F -q b.raw 32M
qemu-img convert -f raw -O qcow2 a.raw a.qcow2
qemu-img convert -f raw -O qcow2 b.raw b.qcow2
rm ./*.raw
agent_cfg g "${agent_channels[@]}" "$agent_name,connection=socket,path=$agent_path-g.sock" -- \
	"format=qcow2,vdev=xvda,access=rw,target=$LAB_WORK/a.qcow2" \
	"format=qcow2,vdev=xvdb,access=rw,target=$LAB_WORK/b.qcow2"
agent_up g
more_ticks g 3
cp g.cfg before.out

# as_before: the guest goes on, on its own images, and nothing else is there.
as_before() {
	more_ticks g 2
	not_torn g
	[[ $(image_of g xvda) == "$LAB_WORK/a.qcow2" && $(image_of g xvdb) == "$LAB_WORK/b.qcow2" ]] ||
		fail "it runs on $(image_of g xvda), $(image_of g xvdb)"
	cmp g.cfg before.out || fail "its configuration file is another one"
	[[ $(echo ./*.qcow2 ./g.cfg*) == './a.qcow2 ./b.qcow2 ./g.cfg' ]] || fail "left: $(ls)"
	[[ ! -e kept/g.backup || -z $(ls -A kept/g.backup) ]] || fail "left: $(ls -A kept/g.backup)"
}

refused 3 'no directory' xl-snapshot backup g.cfg nowhere --quiesce agent
refused 3 'what a power cut leaves' xl-snapshot backup g.cfg to
xl-snapshot backup g.cfg to --quiesce agent --dry-run >plan.out
grep -q 'freeze' plan.out || fail "the plan: $(<plan.out)"
as_before

from=$(tick g)
xl-snapshot backup g.cfg to --quiesce agent --json >backup.json
as_before
made=$(json directory <backup.json)
[[ $made == "$LAB_WORK"/to/g-backup-* && $(cd to && echo *) == "${made##*/}" ]] || fail "$(ls to; cat backup.json)"
for disk in xvda xvdb; do clean "$made/$disk.qcow2" qcow2; done
qemu-img convert -f qcow2 -O raw "$made/xvda.qcow2" it.out
found=$(debugfs -R 'cat tick' it.out 2>/dev/null)
((found >= from && found <= $(tick g))) || fail "the backup is of tick $found, and was begun at $from"
xl-snapshot show "$made"/*.record >show.out || fail "$(<show.out)"

# ---- an export that has no room: the snapshot goes again

mkdir small
mount -t tmpfs -o size=1M none small
rc=0
xl-snapshot backup g.cfg small --quiesce agent >small.out 2>&1 || rc=$?
((rc == 1)) || fail "exit status $rc: $(<small.out)"
[[ -z $(ls -A small) ]] || fail "left: $(ls -A small)"
umount small
as_before

# ---- killed between its parts: the next one ends it

xl-snapshot backup g.cfg to --quiesce agent >killed.out 2>&1 &
victim=$!
until compgen -G 'kept/g.backup/*.record' >/dev/null; do
	kill -0 $victim 2>/dev/null || fail "$(<killed.out)"
	lab_pause 0.05
done
kill -KILL $victim
wait $victim || :
for ((i = 0; i < 200; i++)); do pgrep xl-snap-guard >/dev/null || break; lab_pause; done
compgen -G 'kept/g.backup/*.record' >/dev/null || fail "it was not killed where it should be"
rm -f g.cfg.bak-*
xl-snapshot backup g.cfg to --quiesce agent --json >backup.json 2>errors.out
grep -q 'deleted snapshot backup-.* of an earlier backup' errors.out || fail "$(<errors.out)"
rm -f g.cfg.bak-*
as_before
[[ $(ls to | wc -l) == 2 ]] || fail "$(ls -la to)"
