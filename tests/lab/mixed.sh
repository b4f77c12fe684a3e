# Sourced by the scenarios of tests/lab/mixed, which share a disk between two releases of Xen.
# shellcheck shell=bash
. /lab/t/lib.sh

mixed=/srv/mixed
mkdir -p $mixed
blkid /dev/vdb >/dev/null || mkfs.ext4 -q /dev/vdb
mount /dev/vdb $mixed
cd $mixed

# keep NAME IMAGE: notes the moment of a snapshot for the other release.
keep() { echo "$1 ${lab_from[$2]} ${lab_until[$2]} ${lab_boot[$2]}" >"$2.moment"; }

# goes_on_from NAME IMAGE: a revert of what another release has saved; the guest goes on from that moment, in
# the same boot.
goes_on_from() {
	local name=$1 image=$2 from until boot first
	read -r _ from until boot <"$image.moment"
	mark "$name"
	xl-snapshot revert -v "$image"
	more_ticks "$name" 3 90
	not_torn "$name"
	first=$(console "$name" | awk '/^TICK [0-9]+ boot=/ {print $2; exit}')
	((first >= from && first <= until + 1)) || fail "$name goes on with $first, $image is of $from to $until"
	[[ $(boot_id "$name") == "$boot" ]] || fail "$name: another boot after $image"
	xl_monitor_pid "$name" >/dev/null || fail "$name has no xl process after the revert"
}

# leave: the images and the disk are whole before the lab ends.
leave() {
	LAB_WORK=$mixed qemu_img_check_all
	cd /
	umount $mixed
}
