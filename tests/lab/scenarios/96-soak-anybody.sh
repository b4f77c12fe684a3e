#!/bin/bash
# For `make soak`: in the middle of a create, a create by restore, a revert or a clone somebody is killed at a random
# moment: the program, its guard, both, the guest's QEMU, libxl's helper. The snapshot taken before is never harmed, and
# where nobody but us or our helpers were killed, the guest runs on by itself. Where it cannot (its QEMU, or program and
# guard together), a revert brings it back.
# timeout: 14400
# soak
. /lab/t/lib.sh
. /lab/t/faults.sh

rounds=${SOAK_ROUNDS:-50}
vg_up vg0 400M
qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
raw e.img 32M
lvcreate -qq -y -n l -L 8M vg0
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 16M -n thin --thinpool pool vg0
mkdir clones

# Of the first all disks are switched while it runs; the second has to be restored for its raw disk.
guest_up g mem=96 tick=300 a.qcow2 b.qcow2 /dev/vg0/l
guest_up r mem=96 tick=300 e.img /dev/vg0/thin
wait_tick g 3
wait_tick r 3
create g g0.xlsave --name s0 --no-live -d xvdb,external
create r r0.xlsave --name s0 --no-live
victims=(program guard both qemu helper)
declare -A tries=()

# kill_one VICTIM NAME PID: it may have ended by itself.
kill_one() {
	local pid
	case $1 in
	program) kill -KILL "$3" ;;
	guard) pid=$(pid_of xl-snap-guard) && kill -KILL "$pid" ;;
	both)
		pid=$(pid_of xl-snap-guard) && kill -KILL "$pid"
		kill -KILL "$3"
		;;
	qemu) pid=$(xenstore-read "/local/domain/$(domid "$2")/image/device-model-pid") && kill -KILL "$pid" ;;
	helper) pid=$(pid_of libxl-save-help) && kill -KILL "$pid" ;;
	esac 2>/dev/null || :
}

# back NAME: by the last resort, to the snapshot taken before.
back() {
	intact "$1"0.xlsave
	mark "$1"
	xl-snapshot revert -q "$1"0.xlsave >back.out 2>back.err.out || fail "the revert: $(<back.err.out)"
	went_back "$1" "$1"0.xlsave
}

for ((round = 0; round < rounds; round++)); do
	victim=${victims[RANDOM % ${#victims[@]}]}
	operation=$((RANDOM % 4)) name=g
	case $operation in
	0) what=create command=(create g --name "n$round" --memory "n$round.xlsave" --no-live -d xvdb,external) ;;
	1) what="create by restore" name=r command=(create r --name "n$round" --memory "n$round.xlsave" --no-live) ;;
	2) what=revert command=(revert g0.xlsave --discard-current) ;;
	3) what=clone command=(revert g0.xlsave --as h --overlay-dir "$LAB_WORK/clones") ;;
	esac
	echo "round $round: $what, $victim" >&2
	reliability "guests lost" 1
	xl-snapshot "${command[@]}" >"n$round.out" 2>"n$round.err.out" &
	pid=$!
	lab_pause "$((RANDOM % 12)).$((RANDOM % 10))"
	kill_one $victim $name $pid
	rc=0
	wait $pid || rc=$?
	for ((i = 0; i < 300; i++)); do guard_works || break; lab_pause; done
	((i < 300)) || fail "round $round: the guard still works after 90 s"
	tries[$victim]=$((${tries[$victim]-0} + 1))
	reliability "kills survived" 1
	if [[ -e n$round.xlsave ]]; then intact "n$round.xlsave"; fi
	if [[ $victim == qemu || $victim == both || $what == revert ]]; then
		back $name
	else
		more_ticks $name 3 90
		not_torn $name
	fi
	intact ${name}0.xlsave
	reliability "guests lost" -1
	# A clone ends here, and what is kept of each round, which has room for some only.
	! domid h >/dev/null || xl destroy h
	gone h
	rm -rf clones/* "n$round.xlsave"* /var/lib/xen/snapshots/r
	lvs --noheadings -o lv_full_name -S 'lv_name=~before-revert || lv_name=~\.n[0-9]' vg0 | xargs -r lvremove -qqy
	((round % 10 < 9)) || back g
	((round % 10 < 9)) || back r
done
back g
back r
xl destroy g
xl destroy r
qemu_img_check_all
lvm_check vg0
for victim in "${!tries[@]}"; do reliability "kills of the $victim" "${tries[$victim]}"; done
detail "$rounds rounds:$(for victim in "${!tries[@]}"; do printf ' %s %d' "$victim" "${tries[$victim]}"; done)"
