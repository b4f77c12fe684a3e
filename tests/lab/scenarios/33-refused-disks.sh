#!/bin/bash
# Disks that nobody can snapshot consistently are refused by name, unless they are left out by the
# user's word. What cannot change is left out, and said so.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
cp /etc/xen/scripts/block /etc/xen/scripts/block-lab
vg_up vg0 200M
for lv in a b c; do lvcreate -qq -y -n $lv -L 32M vg0; done
raw ro.img 32M
raw part.img 64M
qcow2 q.qcow2 32M
part=$(losetup --show -f part.img)
# q.qcow2 is the first disk that is no specification, so it gets the first name.
guest_up g tick=300 q.qcow2 "script=block-lab,vdev=xvdb,access=rw,target=/dev/vg0/a" \
	"format=raw,vdev=xvdc,access=rw,target=$part" \
	"format=raw,vdev=xvdd,access=ro,target=$w/ro.img" \
	"format=raw,vdev=xvde,access=rw,backendtype=qdisk,target=/dev/vg0/b"
wait_tick g 2
snap=(xl-snapshot create g --name s1 --memory s1.xlsave --no-live)

refused 3 'set up by the script' "${snap[@]}"
cell "script of another kind" pv create refused
refused 3 'not a logical volume' "${snap[@]}" -d xvdb,none
cell "other block device" pv create refused
refused 3 'on a device' "${snap[@]}" -d xvdb,none -d xvdc,none -d xvde,external
refused 3 'read-only disk' "${snap[@]}" -d xvdb,none -d xvdc,none -d xvdd,external

# Another domain writes to the same image: QEMU lets two do that.
sed -e 's/^name.*/name = "h"/' -e "s|^disk.*|disk = [\"format=qcow2,vdev=xvda,access=rw,target=$w/q.qcow2\"]|" g.cfg >h.cfg
xl create -q -p h.cfg
refused 3 'disk xvda of domain h may write to it' "${snap[@]}" -d xvdb,none -d xvdc,none
cell "written to by two domains" pv create refused
xl destroy h

# A raw volume that QEMU serves is a volume.
"${snap[@]}" -d xvdb,none -d xvdc,none 2>&1 | tee report.out
grep -q 'disk xvdd is not in the snapshot: read-only' report.out || fail "xvdd is not said to be left out"
grep -q 'disk xvdb is not in the snapshot: left out as asked' report.out || fail "xvdb is not said to be left out"
[[ $(volumes vg0) == "a b b.s1 c" ]] || fail "volumes: $(volumes vg0)"
cell "read-only, CD-ROM" pv create "left out"
more_ticks g 2
not_torn g
detail "$(grep -c '^refused as it should be' "$LAB_LOGS/output.log") refusals"
