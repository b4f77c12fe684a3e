# Sourced by the scenarios that try every kind of disk on one kind of guest. Each cell of the table
# that `lab run` prints at its end comes from here.
# shellcheck shell=bash
. /lab/t/lib.sh

# The disks of the guest, in its order; xvdh is a CD-ROM. Where QEMU serves no VHD, xvdg is a qcow2 file.
kinds=(internal external thin thick raw reflink)
if serves vpc; then kinds+=(vhd); fi

# kinds_up NAME WORD...: a guest with a disk of each kind.
kinds_up() {
	local name=$1 w=$LAB_WORK
	shift
	qcow2 a.qcow2 64M
	qcow2 b.qcow2 64M
	vg_up vg0 600M
	lvcreate -qq -y --type thin-pool -n pool -L 128M vg0
	lvcreate -qq -y -V 64M -n thin --thinpool pool vg0
	lvcreate -qq -y -n thick -L 64M vg0
	raw e.img 64M
	xfs_up x
	raw x/f.img 64M
	local last="format=qcow2,vdev=xvdg,access=rw,target=$w/g.qcow2"
	if serves vpc; then
		qemu-img create -q -f vpc g.vhd 64M
		last="format=vhd,vdev=xvdg,access=rw,target=$w/g.vhd"
	else
		qcow2 g.qcow2 64M
	fi
	raw cd.iso 1M
	guest_up "$name" "$@" a.qcow2 b.qcow2 /dev/vg0/thin /dev/vg0/thick \
		"format=raw,vdev=xvde,access=rw,backendtype=qdisk,target=$w/e.img" \
		"format=raw,vdev=xvdf,access=rw,target=$w/x/f.img" \
		"$last" \
		"format=raw,vdev=xvdh,access=ro,devtype=cdrom,target=$w/cd.iso"
	wait_tick "$name" 2
}

# kinds_cells GUEST OPERATION: it went well with each of them.
kinds_cells() {
	local kind
	for kind in "${kinds[@]}"; do cell "$kind" "$1" "$2" ok; done
}

# kinds_check NAME: the guest is down, and every disk's own tool finds nothing wrong.
kinds_check() {
	xl destroy "$1"
	qemu_img_check_all
	lvm_check vg0
	umount x
	xfs_repair -n x.fs || fail "xfs_repair"
}
