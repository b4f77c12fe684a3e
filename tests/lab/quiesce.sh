# Sourced by the scenarios of snapshots whose guest freezes its file systems. Needs lib.sh.
#
# Their guest is another one than init.c: busybox, an ext4 on each disk, and Debian's own qemu-ga on /dev/hvc1, started
# in the same way as by cfg-examples/qemu-ga-xen.service.
# shellcheck shell=bash

agent_path=/run/xen/qga
agent_name=name=org.qemu.guest_agent.0

# agent_initramfs: makes agent.img.
agent_initramfs() {
	local root=$LAB_WORK/agent.root file module
	mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,modules,mnt}
	cp /bin/busybox "$root/bin/"
	for file in /usr/sbin/qemu-ga $(ldd /usr/sbin/qemu-ga | grep -o '/[^ ]*'); do
		mkdir -p "$root$(dirname "$file")"
		cp -L "$file" "$root$file"
	done
	for module in $(modprobe -D xen-blkfront; modprobe -D ext4); do
		[[ $module == /* ]] || continue
		file=$(basename "$module" .xz)
		[[ ! -e $root/modules/$file ]] || continue
		case $module in *.xz) busybox xzcat "$module" ;; *) cat "$module" ;; esac >"$root/modules/$file"
		echo "$file" >>"$root/modules/list"
	done
	cat >"$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
while read -r module; do insmod "/modules/$module"; done </modules/list
boot=$(cat /proc/sys/kernel/random/boot_id)
disks=
for letter in a b c; do
	for try in 1 2 3 4 5 6 7 8 9 10; do
		[ ! -b /dev/xvd$letter ] || break
		[ $letter = a ] || [ $try -lt 3 ] || break
		sleep 0.3
	done
	[ -b /dev/xvd$letter ] || continue
	mkdir -p /mnt/$letter
	if grep -q nomount /proc/cmdline; then mkdir -p /mnt/$letter
	else mount -t ext4 /dev/xvd$letter /mnt/$letter || echo "ERROR mount xvd$letter"; fi
	disks="$disks $letter"
done
(while :; do setsid -c qemu-ga -m isa-serial -p /dev/hvc1 -t /tmp </dev/hvc1 >/tmp/ga.log 2>&1; sleep 1; done) &
n=$(cat /mnt/a/tick 2>/dev/null || echo 0)
# xvda is written first: another disk of the same moment has the same tick, or the one before.
torn=0
for l in $disks; do
	found=$(cat /mnt/$l/tick 2>/dev/null || echo 0)
	[ $found -eq $n ] || [ $found -eq $((n - 1)) ] || { torn=1; echo "TORN disk=xvd$l expected=$n found=$found"; }
done
echo "BOOT boot=$boot found=$n disks=$disks"
# Load: data that is in the page cache only, and metadata.
(i=0; while :; do i=$((i + 1)); for l in $disks; do
	dd if=/dev/urandom of=/mnt/$l/load.$((i % 8)) bs=16k count=8 2>/dev/null; mv /mnt/$l/load.$((i % 8)) /mnt/$l/moved 2>/dev/null
done; sleep 0.2; done) &
while :; do
	n=$((n + 1))
	for l in $disks; do echo $n >/mnt/$l/tick.new && mv /mnt/$l/tick.new /mnt/$l/tick && sync -f /mnt/$l/tick; done
	read -r up _ </proc/uptime
	echo "TICK $n boot=$boot torn=$torn up=$up"
	sleep 0.3
done
END
	chmod 755 "$root/init"
	(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >agent.img
	rm -rf "$root"
}

# agent_cfg NAME CHANNEL... -- DISK...: NAME.cfg of such a guest; a disk is an xl disk specification.
agent_cfg() {
	local name=$1 channels='' disks=''
	shift
	while [[ $1 != -- ]]; do channels+="\"$1\"," && shift; done
	shift
	while (($#)); do disks+="\"$1\"," && shift; done
	cat >"$name.cfg" <<END
name = "$name"
type = "${agent_type-pv}"
memory = 128
vcpus = 1
kernel = "/lab/guest/vmlinux"
ramdisk = "$LAB_WORK/agent.img"
extra = "console=hvc0 loglevel=4 panic=1 mitigations=off rodata=off cryptomgr.notests ${agent_extra-}"
disk = [${disks%,}]
channel = [${channels%,}]
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
END
}

# The channel before the agent's: xl of Xen 4.17 drops the first one.
agent_channels=()
[[ ! -e /usr/lib/xen-4.17 ]] || agent_channels=(name=unused,connection=pty)

# agent_up NAME: starts it, and waits for its first tick and its agent.
agent_up() {
	mark "$1"
	xl create -q "$1.cfg"
	wait_line "$1" '^TICK [0-9]' 90
	agent_there "$1"
}

# agent_there NAME: waits until its agent answers.
agent_there() {
	local end=$((SECONDS + 60))
	until [[ $(agent "$1" guest-ping) == *return* ]]; do
		((SECONDS < end)) || fail "$1: its agent does not answer"
		lab_pause 1
	done
}

# longest_gap NAME: the longest time between two of its ticks, by its own clock, in seconds.
longest_gap() {
	console "$1" | awk '/^TICK / {
		for (i = 3; i <= NF; i++) if ($i ~ /^up=/) { up = substr($i, 4); if (last && up - last > gap) gap = up - last; last = up }
	} END { printf "%.1f\n", gap }'
}

# agent NAME COMMAND [ARGUMENTS]: what the agent answers, asked without xl-snapshot.
agent() {
	local line pid request="{\"execute\":\"$2\"${3+,\"arguments\":$3}}"
	coproc lab_agent { exec timeout 10 socat - "UNIX-CONNECT:$agent_path-$1.sock"; }
	pid=$lab_agent_PID
	printf '\377%s\n' "$request" >&"${lab_agent[1]}" || return 0
	# What comes before the request is no JSON, and it says so first.
	while read -r -t 8 line <&"${lab_agent[0]}"; do
		echo "$line"
		[[ $line == *'JSON parse error'* ]] || break
	done
	kill "$pid" 2>/dev/null || :
	wait "$pid" 2>/dev/null || :
}

# in_guest NAME COMMAND: has the guest's shell run something.
in_guest() {
	agent "$1" guest-exec "{\"path\":\"/bin/sh\",\"arg\":[\"-c\",\"$2\"]}" | grep -q pid ||
		fail "$1: its agent does not run $2"
}

# clean FILE FORMAT: the ext4 in an image needs no repair, not even its journal.
clean() {
	qemu-img convert -f "$2" -O raw "$1" clean.img
	! dumpe2fs -h clean.img 2>/dev/null | grep -q needs_recovery || fail "$1: its journal has to be replayed"
	e2fsck -fn clean.img || fail "$1: e2fsck: exit $?"
	rm clean.img
}
