#!/bin/bash
# Callers that end, and kill all that belongs to them; and that leave the program signals, limits, descriptors and an
# environment of theirs.
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
job=/sys/fs/cgroup/job
mkdir -p $job
enter() { echo $BASHPID >"$1/cgroup.procs"; }
end_job() { echo 1 >$job/cgroup.kill; }

qcow2 a.qcow2 32M
raw e.img 32M
guest_up g mem=96 tick=300 a.qcow2 e.img
wait_tick g 2
snap=(--no-live -d xvda,external -d xvdb,none)

# A revert in a job that is nice, short of everything and deaf; then the job is ended. The script of the raw disk is
# run by libxl when the domain is destroyed, and by xl when it is restored.
create g s0.xlsave --name s0 --no-live -d xvda,external -d xvdb,external
echo "touch $LAB_WORK/evil" >evil.sh
mark g
(
	enter $job
	renice -n 15 $BASHPID
	ulimit -S -n 40 -c 0
	ulimit -f 4000
	umask 077
	echo 700 >/proc/self/oom_score_adj
	trap '' HUP INT TERM CHLD TSTP
	BASH_ENV=$LAB_WORK/evil.sh exec env --block-signal=USR1,CHLD xl-snapshot revert s0.xlsave
)
[[ ! -e evil ]] || fail "a script was run with the caller's environment"
end_job
went_back g s0.xlsave
qemu=$(xenstore-read "/local/domain/$(domid g)/image/device-model-pid")
for pid in "$qemu" "$(xl_monitor_pid g)"; do
	[[ $(<"/proc/$pid/cgroup") == *:/xl-snapshot ]] || fail "$pid is in $(<"/proc/$pid/cgroup")"
	[[ $(ps -o ni= -p "$pid" | xargs) == 0 ]] || fail "$pid is nice: $(ps -o ni= -p "$pid")"
	[[ $(</proc/$pid/oom_score_adj) == $(</proc/1/oom_score_adj) ]] || fail "$pid is killed first"
	[[ $(grep '^Max open files' "/proc/$pid/limits") == $(grep '^Max open files' /proc/1/limits) ]] || fail "limits"
	# HUP, INT, TERM, CHLD, TSTP. QEMU blocks others itself.
	ignored=$(awk '/^SigIgn/ {print $2}' "/proc/$pid/status") blocked=$(awk '/^SigBlk/ {print $2}' "/proc/$pid/status")
	((!(0x$ignored & 0x94003) && !(0x$blocked & 0x10000))) || fail "signals of $pid: $ignored $blocked"
done

# A revert whose job is asked to end while the domain is down (systemctl stop) has left it, with its tools.
mark g
old=$(domid g)
enter $job
xl-snapshot revert s0.xlsave &
revert_pid=$!
enter /sys/fs/cgroup
while xl domid g 2>/dev/null | grep -qx "$old" && ! [[ $(<"/proc/$revert_pid/cgroup") == *:/xl-snapshot ]]; do :; done
while read -r pid; do kill -TERM "$pid" 2>/dev/null || :; done <$job/cgroup.procs
[[ $(<"/proc/$revert_pid/cgroup") == *:/xl-snapshot ]] || fail "the revert is in $(<"/proc/$revert_pid/cgroup")"
wait "$revert_pid" || fail "the revert ended with its job: exit status $?"
went_back g s0.xlsave

# The job is ended in the middle of a create: the guard is not in it, and lets the guest go on. Also if it is asked to
# end, as systemd does first.
monitor=$(xl_monitor_pid g)
for how in job signals; do
	before=$(stand g)
	enter $job
	hold_create g s1.xlsave --name s1 --no-live -d xvda,none -d xvdb,none
	enter /sys/fs/cgroup
	[[ $(<"/proc/$create_pid/cgroup") == *:/job ]] || fail "it left the job itself"
	guard=$(pid_of xl-snap-guard)
	if [[ $how == job ]]; then
		end_job
	else
		kill -KILL "$create_pid" "$helper_pid"
		for signal in TERM HUP INT QUIT USR1; do kill -$signal "$guard" 2>/dev/null || :; done
	fi
	wait "$create_pid" || :
	goes_on 15
	unharmed g "$before"
done

# Signals that a caller blocks or ignores. SIGCHLD blocked once made it wait for ever, the guest suspended.
create_as() {
	local name=$1 rc=0
	shift
	timeout -k 5 60 "$@" xl-snapshot create g --name "$name" --memory "$name.xlsave" --no-live -d xvda,none -d xvdb,none || rc=$?
	((rc == 0)) || fail "$name: exit status $rc"
	more_ticks g 2
	intact "$name.xlsave"
}
create_as blocked env --block-signal=CHLD
create_as ignored env --ignore-signal=CHLD
create_as limited bash -c 'ulimit -f 2000 -n 20; exec "$@"' _
create_as closed bash -c 'exec "$@" <&- >&- 2>&-' _
rc=0
xl-snapshot create g --name nowhere --memory - --no-live -d xvda,none -d xvdb,none >&- || rc=$?
((rc == 2)) || fail "an image to nowhere: exit status $rc"
more_ticks g 2
not_torn g
xl destroy g
detail "the restored guest and the guard outlive the job; nothing of the caller is inherited"
