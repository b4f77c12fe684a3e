#!/bin/bash
# A guest under load freezes its file systems by its real qemu-ga while its disks are snapshotted: the snapshot needs no
# repair. It is thawed if xl-snapshot is killed in the freeze.
. /lab/t/lib.sh
. /lab/t/faults.sh
. /lab/t/quiesce.sh

agent_initramfs
raw a.img 48M
mkfs.ext4 -F -q a.img
mkfs.ext4 -F -q b.raw 48M
qemu-img convert -f raw -O qcow2 b.raw b.qcow2
agent_cfg g "${agent_channels[@]}" "$agent_name,connection=socket,path=$agent_path-g.sock" -- \
	"format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=$LAB_WORK/a.img" \
	"format=qcow2,vdev=xvdb,access=rw,target=$LAB_WORK/b.qcow2"
agent_up g
more_ticks g 3

alone=(xl-snapshot create g.cfg --disk-only -d xvdb,external)
"${alone[@]}" --name s1 --record s1.record --quiesce agent -v --json >s1.json
grep -q '"disks_only": "quiesced"' s1.json || fail "the report: $(<s1.json)"
grep -q '"by": "agent"' s1.json && grep -q '"file_systems": 2' s1.json || fail "the report: $(<s1.json)"
frozen=$(sed -n 's/.*"frozen_ms": \([0-9]*\).*/\1/p' s1.json)
more_ticks g 3
not_torn g
clean a.img raw
clean b.qcow2 qcow2
xl-snapshot show s1.record >show.out
grep -q "frozen  $frozen ms, by the guest agent, 2 file systems" show.out || fail "show: $(<show.out)"

# Killed when all is frozen: the guard thaws, and takes everything back.
step=$("${alone[@]}" --name s2 --record s2.record --quiesce agent --dry-run |
	sed -n 's/^ *\([0-9]*\)  *freeze the file systems.*/\1/p')
rc=0
FAULTS=$((step - 1)):killed-late "$faulty" create g.cfg --disk-only -d xvdb,external --name s2 --record s2.record \
	--quiesce agent 2>killed.out || rc=$?
((rc == 137)) || fail "exit status $rc instead of 137: $(<killed.out)"
more_ticks g 3 20
while guard_works; do lab_pause 0.2; done
grep -q 'everything is as it was' killed.out || fail "the guard said: $(<killed.out)"
[[ ! -e s2.record && ! -e s2.record.partial ]] || fail "a record is left"

xl destroy g
detail "frozen for $frozen ms"
