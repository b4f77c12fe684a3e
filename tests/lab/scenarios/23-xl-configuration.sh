#!/bin/bash
# A cfg file in every syntax that xl knows is made true at a snapshot, only where it must. What
# `xl config-update` stored is followed by a reboot, so it names the overlays as well.
# slow
. /lab/t/lib.sh

w=$LAB_WORK
vg_up vg0 200M
lvcreate -qq -y -n lv -L 32M vg0
qcow2 a.qcow2 32M
qcow2 "b,c.qcow2" 32M
raw d.img 32M
raw cd.iso 1M
# Later assignments win, so this is the list that counts.
guest_up g tick=300 "cfg=disk = [ # the root disk
	'$w/a.qcow2,qcow2,xvda,w',	\"phy:/dev/vg0/lv,xvdb,w\",
	# a comment with ] and ' in it
	'vdev=xvdc, access=rw, format=qcow2, target=$w/b,c.qcow2' ,

	'backendtype=qdisk,raw:$w/d.img,xvdd,w',
	'file:$w/cd.iso,xvdh:cdrom,r',
]"
wait_tick g 2
cp g.cfg before.cfg
xl-snapshot create g.cfg --name s1 --memory s1.xlsave --no-live -d xvda,external -d xvdc,external >report.out
grep -q "config .*g.cfg.bak-s1" report.out || fail "the report does not tell of the file: $(<report.out)"
cmp before.cfg g.cfg.bak-s1 || fail "the backup is not the file as it was"
diff before.cfg g.cfg >diff.out && fail "the file was not changed"
[[ $(grep -c '^[<>]' diff.out) == 6 ]] || fail "not three lines were changed: $(<diff.out)"
xl -N create g.cfg >parsed.out
for vdev in xvda xvdc xvdd; do
	grep -q "\"pdev_path\": \"$w/g-$vdev.after-s1.qcow2\"" parsed.out || fail "xl does not read the overlay of $vdev"
done
grep -q '"pdev_path": "/dev/vg0/lv"' parsed.out || fail "xl does not read the volume"
more_ticks g 3
not_torn g

# The file is good for a start on the overlays.
xl destroy g
mark g
xl create -q g.cfg
wait_line g '^BOOT ' 90
more_ticks g 2
not_torn g

# What xl config-update stored.
cp g.cfg updated.cfg
echo 'maxvcpus = 2' >>updated.cfg
xl config-update g updated.cfg
create g s2.xlsave --name s2 --no-live -d xvda,external -d xvdc,external -d xvdd,external
base=$(sha256sum g-xvd?.after-s1.qcow2)
more_ticks g 2
at=$(tick g)
mark g
xl reboot g
wait_line g '^BOOT ' 90
more_ticks g 2
not_torn g
(($(tick g) >= at)) || fail "it came up on the bases: tick $(tick g) after $at"
[[ $base == "$(sha256sum g-xvd?.after-s1.qcow2)" ]] || fail "a base was written to"
[[ $(xl vcpu-list g | grep -c '^g ') == 2 ]] || fail "the reboot did not follow xl config-update"

# A file that names other disks than the domain has.
sed "s/xvdc/xvdy/" g.cfg >other.cfg
refused 3 'has no disk xvdc' xl-snapshot create other.cfg --name s3 --memory x.xlsave --no-live -d xvdc,external
xl destroy g
qemu_img_check_all
detail "6 syntaxes; start and reboot on the overlays"
