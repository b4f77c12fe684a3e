#!/bin/bash
# Between a snapshot and its revert, somebody gave names to other files and volumes, rebased an image, switched a
# running QEMU, made overlays by hand, or gave a disk to another guest. Nothing of anybody is lost.
# timeout: 1200
# slow
. /lab/t/lib.sh

w=$LAB_WORK
vg_up vg0 400M
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
qmp() {
	printf '%s\n' '{"execute": "qmp_capabilities"}' "$2" | timeout 20 socat -t 3 - "UNIX-CONNECT:/var/run/xen/qmp-libxenstat-$(domid "$1")"
}
# end GUEST...
end() { for guest; do xl destroy "$guest" && gone "$guest"; done; }

# ---- a rebased image has lost what its snapshot had in the base
raw gold.img 32M
qemu-img create -q -f qcow2 -b "$w/gold.img" -F raw a.qcow2
guest_up g mem=96 tick=300 a.qcow2
wait_tick g 2
create g s1.xlsave --name s1 --no-live -d xvda,internal
end g
qemu-img rebase -f qcow2 -b '' a.qcow2
refused 3 "does not rest on $w/gold.img any more" xl-snapshot revert s1.xlsave
refused 3 "does not rest on" xl-snapshot revert s1.xlsave --as h --overlay-dir "$w"
[[ $(xl-snapshot show s1.xlsave --json | json revertible) == false ]] || fail "show takes it for sound"
# As the hint says.
qemu-img rebase -u -f qcow2 -b "$w/gold.img" -F raw a.qcow2
revert g s1.xlsave
end g

# ---- a volume of another guest has the name now
uuid='cfg=uuid = "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a054"'
guest_up t mem=96 tick=300 "$uuid" /dev/vg0/thin
wait_tick t 2
create t t1.xlsave --name t1 --no-live
lvrename -qq vg0 thin thin.old
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
echo precious | dd of=/dev/vg0/thin bs=512 count=1 conv=sync status=none
precious() { [[ $(head -c 8 /dev/vg0/thin) == precious ]] || fail "$1: the other guest's volume was touched"; }
id=$(domid t)
refused 3 'writes to something else than /dev/vg0/thin' xl-snapshot revert t1.xlsave --discard-current
refused 3 'writes to something else than' xl-snapshot create t --name t2 --memory t2.xlsave --no-live
[[ $(domid t) == "$id" ]] || fail "it was destroyed"
more_ticks t 2
end t
refused 3 'the snapshot was taken of vg0/thin.old' xl-snapshot revert t1.xlsave --discard-current
precious "domain down"
lvremove -qq -y vg0/thin
lvrename -qq vg0 thin.old thin
revert t t1.xlsave
# Its disk is somewhere else by now: what it wrote is not in the volume.
end t
qemu-img convert -f raw -O qcow2 /dev/vg0/thin moved.qcow2
guest_up t mem=96 tick=300 "$uuid" moved.qcow2
xl-snapshot revert t1.xlsave --discard-current --dry-run >plan.out 2>&1 || fail "$(<plan.out)"
grep -q "kept in $w/moved.qcow2 and the volume" plan.out || fail "no word of the other disk: $(<plan.out)"
! grep -q lvremove plan.out || fail "the volume would go: $(<plan.out)"
end t
# The group has another name.
vgchange -qq -an vg0 && vgrename -qq vg0 vg9 && vgchange -qq -ay vg9
refused 3 'vgrename vg9 vg0' xl-snapshot revert t1.xlsave
vgchange -qq -an vg9 && vgrename -qq vg9 vg0 && vgchange -qq -ay vg0

# ---- QEMU was switched by hand
qcow2 q.qcow2 32M
guest_up q mem=96 tick=300 q.qcow2
wait_tick q 2
create q q1.xlsave --name q1 --no-live -d xvda,internal
node=$(qmp q '{"execute": "query-block"}' | tr ',' '\n' | sed -n 's/.*"node-name": *"\([^"]*\)".*/\1/p' | head -n 1)
answer=$(qmp q "{\"execute\": \"blockdev-snapshot-sync\", \"arguments\": {\"node-name\": \"$node\", \"snapshot-node-name\": \"byhand\", \"snapshot-file\": \"$w/ov.qcow2\", \"format\": \"qcow2\"}}")
[[ $answer == *'"return": {}'* && -s ov.qcow2 ]] || fail "QEMU did not switch: $answer"
more_ticks q 4
xl-snapshot revert q1.xlsave >revert.out 2>&1 || fail "$(<revert.out)"
grep -q "kept in $w/ov.qcow2" revert.out || fail "the overlay is not named: $(<revert.out)"
more_ticks q 2
not_torn q
end q
qemu-img check -q -f qcow2 ov.qcow2 || fail "the overlay is damaged"
qemu-img snapshot -l q.qcow2 | grep -q before-revert && fail "the base was rewritten"

# ---- somebody else has the disk that was left out
qcow2 m.qcow2 32M
qcow2 n.qcow2 32M
guest_up m mem=96 tick=300 m.qcow2 "format=qcow2,vdev=xvdb,access=rw,target=$w/n.qcow2"
wait_tick m 2
create m m1.xlsave --name m1 --no-live -d xvdb,none
xl block-detach m xvdb
guest_up n mem=96 tick=300 n.qcow2
wait_tick n 2
id=$(domid m)
refused 3 "uses $w/n.qcow2 for writing" xl-snapshot revert m1.xlsave
[[ $(domid m) == "$id" ]] || fail "it was destroyed"
more_ticks n 2
end n
# Its disk that was left out is of another moment, and was away: the guest says so.
xl-snapshot revert m1.xlsave
more_ticks m 2
end m

# ---- overlays by hand of a guest that is down; the snapshot does not know a configuration file
qcow2 p.qcow2 32M
guest_up p mem=96 tick=300 p.qcow2
wait_tick p 2
create p p1.xlsave --name p1 --no-live -d xvda,internal
wait_tick p $((lab_until[p1.xlsave] + 3))
end p
qemu-img create -q -f qcow2 -b "$w/p.qcow2" -F qcow2 linked.qcow2
qemu-img convert -O raw linked.qcow2 before.raw
xl-snapshot revert p1.xlsave >revert.out 2>&1 || fail "$(<revert.out)"
grep -q "$w/linked.qcow2 rests on it" revert.out || fail "the overlay is not named: $(<revert.out)"
more_ticks p 2
end p
qemu-img convert -O raw linked.qcow2 after.raw
cmp before.raw after.raw || fail "the overlay was ruined by the revert of its base"

# ---- the number of a QEMU that has crashed is that of another program
guest_up c mem=96 tick=300 q.qcow2
wait_tick c 2
create c c1.xlsave --name c1 --no-live -d xvda,internal
id=$(domid c)
kill -9 "$(xenstore-read "/local/domain/$id/image/device-model-pid")"
(
	trap '' HUP TERM
	exec sleep 1000
) &
other=$!
xenstore-write "/local/domain/$id/image/device-model-pid" $other
begin=$SECONDS
xl-snapshot revert c1.xlsave || fail "exit $?"
((SECONDS - begin < 60)) || fail "it waited for another program"
kill -0 $other || fail "the other program was killed"
kill -9 $other
more_ticks c 2
end c

# ---- dom0 itself, by name, serves a disk
guest_up b mem=96 tick=300 "format=qcow2,vdev=xvda,access=rw,backend=Domain-0,target=$w/q.qcow2"
wait_tick b 2
create b b1.xlsave --name b1 --no-live -d xvda,external
revert b b1.xlsave
end b
# ---- a file that names another image than the running domain has; and somebody's image on the overlay of the guest
qcow2 r.qcow2 32M
guest_up r mem=96 tick=300 r.qcow2
wait_tick r 2
cp r.cfg right.out
sed -i "s|$w/r.qcow2|$w/q.qcow2|" r.cfg
refused 3 "it names $w/q.qcow2 as xvda" xl-snapshot create r.cfg --name r1 --memory r1.xlsave --no-live -d xvda,external
cp right.out r.cfg
xl-snapshot create r.cfg --name r1 --memory r1.xlsave --no-live -d xvda,external
top=$(image_of r xvda)
qemu-img create -q -f qcow2 -b "$top" -F qcow2 mine.qcow2
xl-snapshot revert r1.xlsave --discard-current >revert.out 2>&1 || fail "$(<revert.out)"
grep -q "$w/mine.qcow2 rests on it" revert.out || fail "it is not named: $(<revert.out)"
[[ -e $top ]] || fail "the base of somebody's image was deleted"
more_ticks r 2
end r
detail "a rebased image, a renamed volume and group, a switched QEMU, a disk of another guest, an overlay by hand, a reused process number"
