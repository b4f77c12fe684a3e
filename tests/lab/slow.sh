# Sourced by scenarios about storage that is slow. Needs lib.sh.
# shellcheck shell=bash

# xl and the guard leave the group of their caller for the second one.
slow_groups=(/sys/fs/cgroup/slow /sys/fs/cgroup/xl-snapshot)

# slow_up SIZE: a file system of that size on a loop device, mounted at s, whose reads and writes can be slowed
# down. Taken down after the scenario. ext2: it has no journal, whose writes a slow group would keep from others.
slow_up() {
	mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
	truncate -s "$1" slow.fs
	mkfs.ext2 -q slow.fs
	slow_loop=$(losetup --show -f "$LAB_WORK/slow.fs")
	mkdir s
	mount "$slow_loop" s
	slow_device=$(<"/sys/block/${slow_loop#/dev/}/dev")
	# Buffered writes are slow only where memory is accounted as well.
	echo '+io +memory' >/sys/fs/cgroup/cgroup.subtree_control
	mkdir -p "${slow_groups[@]}"
}

# slowly BYTES COMMAND...: runs it with so many bytes a second read from and written to that file system.
slowly() {
	speed "$1"
	shift
	# As it would be read for the first time.
	sync -f s
	echo 3 >/proc/sys/vm/drop_caches
	within "${slow_groups[0]}" "$@"
}

# within GROUP COMMAND...: runs it in that control group.
within() {
	(
		echo $BASHPID >"$1/cgroup.procs"
		shift
		exec "$@"
	)
}

# speed BYTES|max: how much is read and written there in a second.
speed() {
	local group
	for group in "${slow_groups[@]}"; do
		echo "$slow_device rbps=$1 wbps=$1" >"$group/io.max"
	done
}

# slow_revert IMAGE OPTION...: a snapshot of g in s/IMAGE, and a revert to it that takes more than six minutes.
slow_revert() {
	local image=s/$1 begin=$SECONDS
	shift
	slow_up 260M
	qcow2 a.qcow2 16M
	guest_up g mem=96 tick=1000 a.qcow2
	wait_tick g 2
	create g "$image" --name s1 --no-live ${compress:+--compress "$compress"} -d xvda,external
	mark g
	begin=$SECONDS
	# What is on the disk: holes take no time.
	slowly $(($(stat -c '%b * %B' "$image") / 380)) xl-snapshot revert "$image" "$@"
	took=$((SECONDS - begin))
	speed max
	((took > 360)) || fail "it took $took s only: that shows nothing"
	detail "$took s"
}
