# Sourced by every scenario, in dom0. See README.md for how to write one.
# shellcheck shell=bash
#
# Starting a process costs 50 ms here, so prefer the shell's own means. A limit on waiting only
# costs time when the test fails anyway, so all of them are generous.

set -Eeuo pipefail

: "${LAB_WORK:?scenarios are started by run-scenario}" "${LAB_LOGS:?}"
cd "$LAB_WORK"

lab_consoles=/var/log/xen/console
declare -A lab_mark=()

# The trace has a descriptor of its own, so that $(command 2>&1) holds only the command's words.
exec 19>>"$LAB_LOGS/output.log"
BASH_XTRACEFD=19
PS4='+ ${SECONDS}s ${BASH_SOURCE[0]##*/}:${LINENO}: '
set -x

# read with a time limit on a pipe that never has anything: a sleep without a process.
exec 18<> <(:)
lab_pause() { read -r -t "${1:-0.3}" -u 18 || :; }

# ---- verdict

# fail MESSAGE: end the scenario.
fail() {
	{ set +x; } 2>/dev/null
	echo "FAIL: $*" >&2
	[[ -s $LAB_LOGS/reason ]] || echo "$*" >"$LAB_LOGS/reason"
	exit 1
}

# detail TEXT: shown behind the PASS of the scenario; the last one counts.
detail() { echo "$*" >"$LAB_LOGS/detail"; }

# cell DISK GUEST OPERATION ok|WORDS: a cell of the table that `lab run` prints at the end.
cell() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$LAB_LOGS/cells"; }

lab_on_error() {
	local rc=$? command=$BASH_COMMAND
	{ set +x; } 2>/dev/null
	# In a subshell the caller may yet expect the failure.
	if ((BASH_SUBSHELL == 0)) && [[ ! -s $LAB_LOGS/reason ]]; then
		echo "${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}: exit $rc of: ${command%%$'\n'*}" >"$LAB_LOGS/reason"
	fi
	set -x
}
trap lab_on_error ERR

# expect_exit CODE COMMAND...: the command must end with just that exit status.
expect_exit() {
	local want=$1 rc=0
	shift
	"$@" || rc=$?
	((rc == want)) || fail "exit status $rc instead of $want: $*"
}

# ---- disks

# qcow2 FILE SIZE, raw FILE SIZE: new images; relative names are in the scenario's directory.
qcow2() { qemu-img create -q -f qcow2 "$1" "$2"; }
raw() { rm -f "$1" && truncate -s "$2" "$1"; }

# serves FORMAT: whether Xen's QEMU can serve images of a format, by QEMU's name of it.
serves() {
	/usr/libexec/xen-qemu-system-i386 -machine none -nodefaults -display none -drive format=help |
		grep '^Supported formats:' | grep -qw "$1"
}

# vg_up NAME SIZE: a volume group on a loop device; taken down after the scenario.
vg_up() {
	local loop
	truncate -s "$2" "$LAB_WORK/$1.pv"
	loop=$(losetup --show -f "$LAB_WORK/$1.pv")
	vgcreate -qq "$1" "$loop"
}

# xfs_up NAME [SIZE]: a file system that can clone files, mounted at NAME; taken down after the scenario.
xfs_up() {
	truncate -s "${2:-400M}" "$LAB_WORK/$1.fs"
	mkfs.xfs -q "$LAB_WORK/$1.fs"
	mkdir "$1"
	mount -o loop "$LAB_WORK/$1.fs" "$1"
}

# lvm_check GROUP: LVM's own check, and no snapshot overflowed or waits to be merged.
lvm_check() {
	local bad
	vgck "$1" || fail "vgck of $1"
	bad=$(lvs --noheadings --binary -o lv_name,lv_snapshot_invalid,lv_merging "$1" |
		awk '$2 == 1 || $3 == 1')
	[[ -z $bad ]] || fail "volumes of $1: $bad"
}

# volumes GROUP: the names of its volumes, on one line.
volumes() { lvs --noheadings -o lv_name "$1" | sort | xargs; }

# qemu_img_check_all [strict]: checks all qcow2 images of the scenario; their guests must be down.
# Leaked clusters, harmless and what a killed QEMU may leave, count only if strict.
qemu_img_check_all() {
	local file magic rc
	while IFS= read -r -d '' file; do
		magic=
		LC_ALL=C read -r -N 3 magic <"$file" 2>/dev/null || :
		[[ $magic == QFI ]] || continue
		rc=0
		qemu-img check -f qcow2 "$file" || rc=$?
		case $rc in
		0) ;;
		3) [[ ${1-} != strict ]] || fail "leaked clusters in $file" ;;
		*) fail "qemu-img check: $rc for $file" ;;
		esac
	done < <(find "$LAB_WORK" -type f -print0)
}

# ---- guests

# guest_up NAME [WORD...] DISK...: starts a guest, waits for its first tick.
# Words: type=pv|pvh|hvm mem=MB tick=MS (time between two ticks) extra='kernel arguments'
#   cfg='a line of the domain configuration' wait=SECONDS reboot=restart|destroy (what xl does then)
#   tries=N (to boot)
# A disk is a file or block device, which gets the next name from xvda on (format by the ending:
#   .qcow2, .vhd, else raw), or a whole xl disk specification, known by a comma in it.
# The configuration is left in NAME.cfg.
guest_up() {
	local name=$1 type=pv mem=128 tick=1000 extra='' limit='' reboot=restart kernel=vmlinux lines='' list='' word
	local n=0 file format tries=''
	shift
	for word in "$@"; do
		case $word in
		type=*) type=${word#*=} ;;
		mem=*) mem=${word#*=} ;;
		tick=*) tick=${word#*=} ;;
		extra=*) extra=${word#*=} ;;
		wait=*) limit=${word#*=} ;;
		reboot=*) reboot=${word#*=} ;;
		tries=*) tries=${word#*=} ;;
		cfg=*) lines+=${word#*=}$'\n' ;;
		*,*) list+="\"$word\"," ;;
		*)
			file=$word
			[[ $file == /* ]] || file=$LAB_WORK/$file
			case $file in
			*.qcow2) format=qcow2 ;;
			*.vhd) format=vhd ;;
			*) format=raw ;;
			esac
			printf -v word '%b' "\\x$(printf '%x' $((97 + n)))"
			n=$((n + 1))
			list+="\"format=$format,vdev=xvd$word,access=rw,target=$file\","
			;;
		esac
	done
	[[ $type != hvm ]] || kernel=vmlinuz
	cat >"$name.cfg" <<END
name = "$name"
type = "$type"
memory = $mem
vcpus = 1
kernel = "/lab/guest/$kernel"
ramdisk = "/lab/guest/initramfs"
extra = "console=hvc0 loglevel=4 panic=1 mitigations=off rodata=off cryptomgr.notests tick_ms=$tick $extra"
disk = [${list%,}]
on_poweroff = "destroy"
on_reboot = "$reboot"
on_crash = "destroy"
$lines
END
	# One boot of PVH in 15 dies early under emulation, more with many disks; others seldom do. Only the boot may be tried again.
	tries=${tries:-2}
	case $type in hvm) limit=${limit:-180} ;; *) limit=${limit:-90} ;; esac
	while :; do
		mark "$name"
		xl create -q "$name.cfg"
		lab_first_tick "$name" "$limit" && return
		lab_died_early "$name"
		xl destroy "$name" || :
		tries=$((tries - 1))
		((tries > 0)) || fail "$name: it died early, or no first tick in $limit s"
	done
}

# Until the first tick, or the guest is gone: the emulator crashes some.
lab_first_tick() {
	local name=$1 end=$((SECONDS + $2))
	until lab_wait_line "$name" '^TICK [0-9]' 10; do
		((SECONDS < end)) && domid "$name" >/dev/null || return 1
	done
}

# What is known of a guest that did not boot, for whoever reads the log.
lab_died_early() {
	local -
	{ set +x; } 2>/dev/null
	echo "$1 died early, or had no first tick. Its console, xl's log and Xen's:"
	console "$1" | tail -n 20
	tail -n 10 "/var/log/xen/xl-$1.log" || :
	xl dmesg | tail -n 10
} >&2

# console NAME: prints the console since the mark.
console() {
	local log=$lab_consoles/guest-$1.log
	[[ ! -f $log ]] || tail -c +$((${lab_mark[$1]:-0} + 1)) "$log"
}

# mark NAME: torn, ticks, wait_line and console look only at what the guest says from now on.
mark() { lab_mark[$1]=$(stat -c %s "$lab_consoles/guest-$1.log" 2>/dev/null || echo 0); }

# wait_line NAME REGEX [SECONDS]: until a line since the mark matches (extended regex, ^ and $
# are those of the line).
wait_line() { lab_wait_line "$@" || fail "$1: no line like '$2' in ${3:-60} s"; }
lab_wait_line() {
	local - name=$1 regex=$2 end=$((SECONDS + ${3:-60}))
	{ set +x; } 2>/dev/null
	while :; do
		if console "$name" | tr -d '\r' | grep -Eq -- "$regex"; then
			return 0
		fi
		((SECONDS < end)) || return 1
		lab_pause
	done
}

# Prints word FIELD of the newest TICK line, counted from byte FROM of the console.
lab_newest() {
	local - name=$1 field=$2 from=${3:-0}
	{ set +x; } 2>/dev/null
	tail -c +$((from + 1)) "$lab_consoles/guest-$name.log" 2>/dev/null |
		awk -v f="$field" '/^TICK [0-9]+ boot=.* torn=[0-9]+( up=[0-9.]+)?\r?$/ {v = $f} END {print v}'
}

# tick NAME: the newest number; it is smaller after a revert.
tick() { lab_newest "$1" 2; }

# boot_id NAME: the identity of the running boot, which a revert keeps and a reboot changes.
boot_id() {
	local id
	id=$(lab_newest "$1" 3)
	echo "${id#boot=}"
}

# wait_tick NAME N [SECONDS]: until the guest says a number of N or more, from now on.
wait_tick() {
	local - name=$1 want=$2 limit=${3:-60} from now end=$((SECONDS + ${3:-60}))
	{ set +x; } 2>/dev/null
	from=$(stat -c %s "$lab_consoles/guest-$name.log" 2>/dev/null || echo 0)
	while :; do
		now=$(lab_newest "$name" 2 "$from")
		[[ -z $now ]] || ((now < want)) || return 0
		((SECONDS < end)) || fail "$name: tick $want not reached in $limit s, it is at ${now:-no tick}"
		lab_pause
	done
}

# more_ticks NAME N [SECONDS]: until the guest has said N more numbers, whatever they are.
more_ticks() {
	local - name=$1 want=$2 limit=${3:-60} from count end=$((SECONDS + ${3:-60}))
	{ set +x; } 2>/dev/null
	from=$(stat -c %s "$lab_consoles/guest-$name.log" 2>/dev/null || echo 0)
	while :; do
		count=$(tail -c +$((from + 1)) "$lab_consoles/guest-$name.log" 2>/dev/null |
			grep -c '^TICK .* torn=' || :)
		((count < want)) || return 0
		((SECONDS < end)) || fail "$name: $count instead of $want ticks in $limit s"
		lab_pause
	done
}

# torn NAME: how many TORN lines there were since the mark.
torn() { console "$1" | grep -c '^TORN ' || :; }

# not_torn NAME: fails if the guest complained since the mark, of a torn state or an I/O error.
not_torn() {
	local lines
	lines=$(console "$1" | grep -E '^(TORN|ERROR) ' || :)
	[[ -z $lines ]] || fail "$1: ${lines%%$'\n'*}"
}

# domid NAME: prints it, or fails if there is no such domain.
domid() { xl domid "$1" 2>/dev/null; }

# gone NAME [SECONDS]: until there is no such domain.
gone() {
	local - end=$((SECONDS + ${2:-60}))
	{ set +x; } 2>/dev/null
	while domid "$1" >/dev/null; do
		((SECONDS < end)) || fail "domain $1 does not go away"
		lab_pause
	done
}

# xl_monitor_pid NAME: prints the pid of xl's daemon that watches the domain, or fails.
xl_monitor_pid() {
	local - proc
	{ set +x; } 2>/dev/null
	for proc in /proc/[1-9]*; do
		if [[ $proc/fd/1 -ef /var/log/xen/xl-$1.log && $proc/exe -ef /lab/xen/bin/xl ]]; then
			echo "${proc#/proc/}"
			return
		fi
	done
	return 1
}

# ---- the product

images=/var/lib/xen/snapshots

# json KEY: the value of a top-level key of the JSON object on standard input, as the product prints
# it: one key a line. No JSON tool is in dom0.
json() { sed -n "s/^  \"$1\": \"\\?\\([^\",]*\\)\"\\?,\\?\$/\\1/p"; }

# image_of NAME VDEV: the file that libxl names for a disk.
image_of() {
	xl list -l "$1" | awk -F'"' -v vdev="$2" '$2 == "pdev_path" {p = $4} $2 == "vdev" && $4 == vdev {print p}'
}

# ms SECONDS_OR_MS: without what stands behind the point.
ms() { echo "${1%%.*}"; }

# refused CODE WORDS COMMAND...: it ends with that exit status and an error that has these words, and
# prints no result.
refused() {
	local want=$1 words=$2 rc=0 errors
	shift 2
	errors=$("$@" 2>&1 >"$LAB_WORK/refused.out") || rc=$?
	((rc == want)) || fail "exit status $rc instead of $want: $* ($errors)"
	[[ $errors == *"$words"* ]] || fail "no word of '$words' in: $errors"
	[[ ! -s $LAB_WORK/refused.out ]] || fail "a refusal printed a result: $*"
	echo "refused as it should be: $errors" >&2
}

# The moment of each snapshot, by its image: the counter before and after the create, and the boot.
declare -A lab_from=() lab_until=() lab_boot=()

# create NAME IMAGE ARGUMENT...: takes a snapshot and lets the guest run on well past it. The report
# is left in IMAGE.json.
create() {
	local name=$1 image=$2
	shift 2
	lab_boot[$image]=$(boot_id "$name")
	lab_from[$image]=$(tick "$name")
	xl-snapshot create -v "$name" --memory "$image" --json "$@" >"$image.json"
	lab_until[$image]=$(($(tick "$name") + 1))
	wait_tick "$name" $((lab_until[$image] + 3))
	not_torn "$name"
}

# The number to which the counter jumped last, the mark included: the guest may have run on after the
# mark, until it was destroyed. Back or, from an older snapshot to a newer one, forward.
lab_jumped() {
	{
		head -c "${lab_mark[$1]}" "$lab_consoles/guest-$1.log"
		console "$1"
	} | awk '/^TICK [0-9]+ boot=/ {if (seen && $2 != last + 1) at = $2; last = $2; seen = 1} END {print at}'
}

# went_back NAME IMAGE: the guest goes on from the moment of the snapshot, in the same boot, with
# disks that agree, watched by xl. Everything since the mark counts.
went_back() {
	local name=$1 image=$2 first
	more_ticks "$name" 3
	not_torn "$name"
	first=$(lab_jumped "$name")
	[[ $first ]] || fail "$name runs on as if nothing had happened"
	((first >= lab_from[$image] && first <= lab_until[$image])) ||
		fail "$name goes on with $first, $image is of ${lab_from[$image]} to ${lab_until[$image]}"
	[[ $(boot_id "$name") == "${lab_boot[$image]}" ]] || fail "$name: another boot after $image"
	xl_monitor_pid "$name" >/dev/null || fail "$name has no xl process after the revert"
}

# revert NAME IMAGE ARGUMENT...
revert() {
	local name=$1 image=$2
	shift 2
	mark "$name"
	xl-snapshot revert -v "$image" "$@"
	went_back "$name" "$image"
}

# create_then_revert_twice NAME IMAGE ARGUMENT...
create_then_revert_twice() {
	create "$@"
	revert "$1" "$2"
	revert "$1" "$2"
}

# ---- failures

# stand NAME: all that a create which fails must leave as it was: files and their permissions, the
# snapshots inside of them, volumes, what libxl and xenstore say of the domain, its xl process.
# Files called *.out and *.sh are the scenario's own.
stand() {
	local id file monitor
	id=$(domid "$1") || return 0
	find . -type f ! -name '*.out' ! -name '*.sh' -printf '%p %m\n' | sort
	for file in *.qcow2; do
		qemu-img snapshot -U -l "$file"
	done
	lvs --noheadings -o vg_name,lv_name,lv_tags 2>/dev/null
	xl list -l "$1"
	xenstore-ls -f "/libxl/$id" | grep -e /params -e /dev
	xenstore-ls -f "/local/domain/$id/control"
	monitor=$(xl_monitor_pid "$1") || monitor=none
	echo "xl process $monitor $(ps -o stat= -p "$monitor" | grep -o '^T' || :)"
}

# unharmed NAME BEFORE: all is as `stand` said it before, and the guest goes on.
unharmed() {
	local now
	more_ticks "$1" 3
	not_torn "$1"
	now=$(stand "$1")
	[[ $now == "$2" ]] || fail "not as it was: $(diff <(echo "$2") <(echo "$now") | grep '^[<>]' | xargs)"
}

# hold_create NAME IMAGE ARGUMENT...: starts a create and holds it in the middle of the memory, by
# stopping the program that writes it.
hold_create() {
	local - name=$1 image=$2 end=$((SECONDS + 60)) size=0
	shift 2
	xl-snapshot create "$name" --memory "$image" "$@" >create.out 2>errors.out &
	create_pid=$!
	{ set +x; } 2>/dev/null
	while helper_pid=$(pgrep -P "$create_pid" -f libxl-save-helper || :); [[ -z $helper_pid ]]; do
		((SECONDS < end)) && kill -0 "$create_pid" 2>/dev/null || fail "no save begins: $(<errors.out)"
	done
	while ((size < 10000000)); do
		((SECONDS < end)) && size=$(stat -c %s "$image.partial") || fail "no image grows: $(<errors.out)"
	done
	kill -STOP "$helper_pid" && [[ -e $image.partial ]] || fail "it was over too soon: $(<errors.out)"
}

# let_create CODE WORDS...: lets it go on, and fails if it does not end with that exit status and an
# error that has all these words.
let_create() {
	local want=$1 rc=0 words
	shift
	kill -CONT "$helper_pid" 2>/dev/null || :
	wait "$create_pid" || rc=$?
	cat errors.out >&2
	((rc == want)) || fail "exit status $rc instead of $want: $(xargs -d '\n' <errors.out)"
	for words in "$@"; do
		grep -qF -- "$words" errors.out || fail "no word of '$words' in: $(xargs -d '\n' <errors.out)"
	done
}

# ---- power cuts, for scenarios with a line "# power-cut"

# power_disk up: makes the volume group power on the second disk, with a file system mounted at p;
# power_disk again: brings both back after the cut.
power_disk() {
	if [[ $1 == up ]]; then
		vgcreate -qq power /dev/vdb
		lvcreate -qq -y -n fs -L 1G power
		mkfs.ext4 -q /dev/power/fs
	else
		vgchange -qq -ay power
	fi
	mkdir p
	mount /dev/power/fs p
}

# power_cut WORDS: has the lab kill the machine at once. The scenario is started again, after a boot,
# with WORDS in LAB_CUT.
power_cut() {
	echo "LAB CUT $*" >/dev/hvc0
	lab_pause 60
	fail "nobody cut the power"
}
