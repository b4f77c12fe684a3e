#!/bin/bash
# Whatever a revert or a restore will need is looked at before anything changes: a table. A new report is one
# more line.
# timeout: 1200
# slow
. /lab/t/lib.sh
. /lab/t/table.sh

w=$LAB_WORK
ip link add br-way type bridge
ip link add addr-way type dummy
ip addr add 192.0.2.7/32 dev addr-way
trap 'take_back; for name in br-way addr-way web-way; do ip link del $name 2>/dev/null || :; done' EXIT
vg_up vgw 200M
lvcreate -qq -y -n thick -L 32M vgw
lvcreate -qq -y -n data -L 16M vgw
mkfs.ext4 -q /dev/vgw/data
qcow2 a.qcow2 64M
raw b.img 32M
raw ro.img 1M
raw cd.iso 1M
guest_up g tick=300 a.qcow2 "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target=$w/b.img" \
	"format=raw,vdev=xvdc,access=rw,target=/dev/vgw/thick" \
	"format=raw,vdev=xvdd,access=ro,target=$w/ro.img" \
	"format=raw,vdev=xvde,access=ro,devtype=cdrom,target=$w/cd.iso" \
	"format=raw,vdev=xvdf,access=ro,target=/dev/vgw/data" \
	'cfg=vif = ["bridge=br-way,vifname=web-way"]
vfb = ["vnc=1,vnclisten=192.0.2.7,vncunused=0,vncdisplay=7"]'
wait_tick g 2
create g s1.xlsave --name s1 --no-live -d xvdb,external
xl-snapshot show s1.xlsave --json >show.out
[[ $(json revertible <show.out) == true ]] || fail "not revertible at once: $(<show.out)"

# ---- images
trial "marked as corrupt" 3 'qemu-img check -r all' \
	'printf "\x02" | dd of=a.qcow2 bs=1 seek=79 conv=notrunc status=none' \
	'printf "\x00" | dd of=a.qcow2 bs=1 seek=79 conv=notrunc status=none'
trial "a feature of the future" 3 'features that are not known here' \
	'printf "\x01" | dd of=a.qcow2 bs=1 seek=78 conv=notrunc status=none' \
	'printf "\x00" | dd of=a.qcow2 bs=1 seek=78 conv=notrunc status=none'
trial "the image is gone" 3 'a.qcow2: No such file' 'mv a.qcow2 x' 'mv x a.qcow2'
trial "the base is gone" 3 'the snapshot expects it at' 'mv b.img x' 'mv x b.img'

# ---- who has it open
trial "a backup exports the image" 3 'qemu-nbd (process' \
	'qemu-nbd -r -t -k $w/sock a.qcow2 & lab_held=$!; until [[ -S sock ]]; do lab_pause; done' let_go
trial "a program reads the image" 3 'sleep (process' 'hold a.qcow2' let_go
trial "a program reads it by another name" 3 'sleep (process' 'ln a.qcow2 other; hold other' 'let_go; rm other'
trial "a loop device on the image" 3 'the loop device /dev/loop' \
	'loop=$(losetup --show -r -f a.qcow2)' 'losetup -d $loop'
trial "a program writes to the base" 3 'may write to' 'hold b.img ">>"' let_go
trial "a writable loop device on the base" 3 'may write to' 'loop=$(losetup --show -f b.img)' 'losetup -d $loop'
trial "a partition mapping on the volume" 3 'the device held has it open' \
	'dmsetup create held --table "0 65536 linear /dev/vgw/thick 0"' 'dmsetup remove --retry held'
trial "the volume group misses a disk" 3 'misses 1 of its disks' \
	'truncate -s 20M more.pv; more=$(losetup --show -f more.pv); vgextend -qq vgw "$more"; losetup -d "$more"' \
	'vgreduce -qq --removemissing vgw'
trial "nothing may be allocated from the disk of the group" 3 'from which nothing may be allocated' \
	'pvchange -qq -xn "$(pvs --noheadings -o pv_name -S vg_name=vgw | xargs)"' \
	'pvchange -qq -xy "$(pvs --noheadings -o pv_name -S vg_name=vgw | xargs)"'
trial "the group may have no more volumes" 3 'may have no more' \
	'vgchange -qq -l "$(vgs --noheadings -o lv_count vgw | xargs)" vgw' 'vgchange -qq -l 0 vgw'
on_top() {
	ln -sfn "$w" /run/link
	qemu-img create -q -u -f qcow2 -F qcow2 -b /run/link/a.qcow2 on-top.qcow2 64M
	sed -e 's/^name.*/name = "h"/' -e '/^vif/d' -e '/^vfb/d' \
		-e "s|^disk.*|disk = [\"format=qcow2,vdev=xvda,access=rw,target=$w/on-top.qcow2\"]|" g.cfg >h.cfg
	xl create -q -p h.cfg
}
# It is a base then: the snapshot would be copied out of it.
on_top
xl-snapshot revert s1.xlsave --dry-run >plan.out 2>&1 || fail "$(<plan.out)"
grep -q 'on-top.qcow2 rests on it' plan.out || fail "no word of the overlay: $(<plan.out)"
! grep -q 'snapshot -q -a' plan.out || fail "the base would be rewritten: $(<plan.out)"
xl destroy h
rm on-top.qcow2

# ---- permissions
trial "the image is immutable" 3 'Operation not permitted' 'chattr +i a.qcow2' 'chattr -i a.qcow2'
trial "the image is on a read-only mount" 3 'Read-only file system' \
	'mount --bind a.qcow2 a.qcow2; mount -o remount,ro,bind $w/a.qcow2' 'umount $w/a.qcow2'
trial "no overlay can be made" 3 'a new file is needed' 'touch refused.out; chattr +i .' 'chattr -i .'

# ---- what is left out of the snapshot
trial "a read-only disk is gone" 3 'ro.img: No such file' 'mv ro.img x' 'mv x ro.img'
trial "a read-only disk is a directory" 3 'ro.img is a directory' \
	'mv ro.img x; mkdir ro.img' 'rmdir ro.img; mv x ro.img'
mkdir data
trial "a read-only disk is mounted" 3 "mounted at $w/data," 'mount /dev/vgw/data data' 'umount data'
trial "an ISO is gone" 3 'cd.iso: No such file' 'mv cd.iso x' 'mv x cd.iso'
trial "an ISO is a dangling link" 3 'cd.iso: No such file' 'mv cd.iso x; ln -s nowhere cd.iso' 'mv -f x cd.iso'

# ---- the rest of the configuration
trial "the bridge is gone" 3 'the bridge br-way' 'ip link del br-way' 'ip link add br-way type bridge'
trial "the bridge is something else now" 3 'a network device of another kind' \
	'ip link del br-way; ip link add br-way type dummy' 'ip link del br-way; ip link add br-way type bridge'
trial "the host has another address now" 3 '192.0.2.7, which is no address of this host' \
	'ip addr del 192.0.2.7/32 dev addr-way' 'ip addr add 192.0.2.7/32 dev addr-way'
trial "the script of the network is not executable" 3 'vif-bridge is no program' \
	'chmod -x /etc/xen/scripts/vif-bridge' 'chmod +x /etc/xen/scripts/vif-bridge'
trial "the script of the disks is not executable" 3 'scripts/block is no program' \
	'chmod -x /etc/xen/scripts/block' 'chmod +x /etc/xen/scripts/block'
trial "a script that the scripts read is gone" 3 'vif-common.sh, which' \
	'mv /etc/xen/scripts/vif-common.sh x' 'mv x /etc/xen/scripts/vif-common.sh'
hotplug_log=/var/log/xen/xen-hotplug.log
trial "the log of the scripts is a directory" 3 'write, is a directory' \
	'mv $hotplug_log x; mkdir $hotplug_log' 'rmdir $hotplug_log; mv x $hotplug_log'
trial "another xl has the lock" 3 'holds the lock /var/lock/xl' \
	"cp /etc/xen/xl.conf xl.conf.out; echo 'autoballoon=\"on\"' >>/etc/xen/xl.conf
	socat -t 1000 OPEN:/var/lock/xl,creat,f-setlk-wr - <&18 & lab_held=\$!; lab_pause 1" \
	'let_go; cp xl.conf.out /etc/xen/xl.conf' 'xl-snapshot revert ./s1.xlsave'
qemu=/usr/libexec/xen-qemu-system-i386
trial "Xen's QEMU was removed" 3 'xen-qemu-system-i386: No such file' 'mv $qemu $qemu.away' 'mv $qemu.away $qemu'
bin=$(echo /usr/lib/xen-4*/bin)
trial "an upgrade removed the running Xen's tools" 3 'xl: No such file' 'mv $bin $bin.away' 'mv $bin.away $bin'
trial "xl's log is append-only" 3 'xl-g.log is append-only' \
	'chattr +a /var/log/xen/xl-g.log' 'chattr -a /var/log/xen/xl-g.log'
trial "the oldest of xl's logs is a directory" 3 'xl-g.log.10 is a directory' \
	'touch /var/log/xen/xl-g.log.9; mkdir /var/log/xen/xl-g.log.10' \
	'rm /var/log/xen/xl-g.log.9; rmdir /var/log/xen/xl-g.log.10'
trial "Xen's directory is read-only" 3 '/var/lib/xen' \
	'mount --bind /var/lib/xen /var/lib/xen; mount -o remount,ro,bind /var/lib/xen' 'umount /var/lib/xen'

# ---- create tells what a revert will lack
mv cd.iso x
xl-snapshot create g --name s2 --memory s2.xlsave --no-live -d xvdb,none --dry-run >plan.out
grep -q 'a revert would fail: .*cd.iso' plan.out || fail "the plan does not say what a revert lacks"
mv x cd.iso

# ---- the domain does not run
xl destroy g
trial "dirty bitmaps of a backup" 3 'qemu-img bitmap --remove' \
	'qemu-img bitmap --add a.qcow2 b0' 'qemu-img bitmap --remove a.qcow2 b0'
trial "another network device has the name" 3 'a network device called web-way' \
	'ip link add web-way type dummy' 'ip link del web-way'
trial "another program has the port" 3 'has port 5907' \
	'socat TCP-LISTEN:5907,bind=192.0.2.7 - <&18 & lab_held=$!; lab_pause 1' let_go

writes_data() {
	sed -e 's/^name.*/name = "h"/' -e '/^vif/d' -e '/^vfb/d' \
		-e 's|^disk.*|disk = ["format=raw,vdev=xvda,access=rw,target=/dev/vgw/data"]|' g.cfg >h.cfg
	xl create -q -p h.cfg
}
trial "another domain writes to a read-only disk" 3 'domain h uses /dev/vgw/data for writing' writes_data 'xl destroy h'

consoles=$(tr '\0' ' ' <"/proc/$(pidof xenconsoled)/cmdline")
trial "the daemon of the consoles is dead" 3 'no xenconsoled' \
	'pkill -x xenconsoled; while pidof xenconsoled; do lab_pause; done' 'env -u LAB_RUN $consoles; pidof xenconsoled'
trial "xl's own configuration is broken" 3 'xl does not work' \
	"cp /etc/xen/xl.conf xl.conf.out; echo 'lockfile=\"' >>/etc/xen/xl.conf" 'cp xl.conf.out /etc/xen/xl.conf'
mkdir -p /etc/lvm/archive
trial "LVM cannot keep its records" 3 'directory /etc/lvm/archive' \
	'mount -t tmpfs -o ro none /etc/lvm/archive' 'umount /etc/lvm/archive'

# Nothing of all that is in the way any more, nor the same port at another address.
socat TCP-LISTEN:5907,bind=127.0.0.1 - <&18 &
lab_held=$!
lab_pause 1
revert g s1.xlsave
let_go

# ---- create: what would be worthless
xl destroy g
qcow2 dirty.qcow2 64M
qemu-img bitmap --add dirty.qcow2 b0
guest_up g tick=300 dirty.qcow2
wait_tick g 2
trial "a snapshot in an image with bitmaps" 3 'external' : : \
	"xl-snapshot create g --name s3 --memory s3.xlsave --no-live"
xl-snapshot create g --name s3 --memory s3.xlsave --no-live -d xvda,external
xl destroy g
raw loop.img 64M
raw gone.iso 1M
guest_up g tick=300 loop.img "format=raw,vdev=xvdb,access=ro,devtype=cdrom,target=$w/gone.iso"
wait_tick g 2
trial "a restore without its ISO" 3 'gone.iso: No such file' 'mv gone.iso x' 'mv x gone.iso' \
	"xl-snapshot create g --name s4 --memory s4.xlsave --no-live"
detail "$lab_trials cases refused before anything changed"
