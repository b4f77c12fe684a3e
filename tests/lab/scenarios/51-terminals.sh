#!/bin/bash
# A terminal that was stopped, a pipe that nobody reads, Ctrl-Z: the guest never stands still for that, its xl
# process is not held, and the guard does its work first.
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

qcow2 a.qcow2 32M
guest_up g mem=96 tick=300 a.qcow2
wait_tick g 2
create g s0.xlsave --name s0 --no-live -d xvda,external

# full_pipe: descriptor 20 is a pipe that takes nothing more. full_terminal: the same for a terminal.
full_pipe() {
	rm -f pipe
	mkfifo pipe
	exec 20<>pipe
	timeout 2 cat /dev/zero >&20 || :
}
# In a session of its own: whoever else is stopped in a group gets SIGHUP when that is orphaned.
full_terminal() {
	rm -f tty
	setsid socat "PTY,link=$LAB_WORK/tty,rawer" "EXEC:sleep 1000" &
	socat=$!
	until [[ -e tty ]]; do lab_pause 0.1; done
	kill -STOP $socat
	exec 20<>tty
	timeout 2 cat /dev/zero >&20 || :
	# What has gone on into the terminal itself since has made room.
	timeout 2 cat /dev/zero >&20 || :
}
drain() {
	if [[ $1 == pipe ]]; then
		cat <&20 >/dev/null &
	else
		kill -CONT $socat
	fi
}
stuck() { [[ $(<"/proc/$1/stat") != *') Z '* ]] || fail "it did not wait for the $2: nothing is shown"; }

for what in pipe terminal; do
	full_$what
	id=$(domid g)
	mark g
	xl-snapshot revert -v s0.xlsave 2>&20 &
	pid=$!
	for ((i = 0; i < 300; i++)); do
		now=$(domid g) && [[ $now != "$id" ]] && break
		lab_pause
	done
	more_ticks g 3 90
	stuck $pid $what
	went_back g s0.xlsave
	drain $what
	wait $pid || fail "a revert to a stopped $what: exit status $?"

	full_$what
	monitor=$(xl_monitor_pid g)
	xl-snapshot create g -v --name "$what" --memory "$what.xlsave" --no-live -d xvda,none 2>&20 &
	pid=$!
	for ((i = 0; i < 300; i++)); do [[ ! -e $what.xlsave ]] || break; lab_pause; done
	stuck $pid $what
	goes_on 15
	intact "$what.xlsave"
	drain $what
	wait $pid || fail "a create to a stopped $what: exit status $?"

	# Killed, and the guard has nobody to talk to.
	full_$what
	before=$(stand g)
	FAULTS=4:killed-late "$faulty" create g -v --name k --memory k.xlsave --no-live -d xvda,external >k.out 2>&20 || :
	goes_on 15
	unharmed g "$before"
	drain $what
done

# Ctrl-Z in the middle of the memory: the program stops when all is done.
hold_create g z.xlsave --name z --no-live -d xvda,none
kill -TSTP "$create_pid"
kill -TTOU "$create_pid"
kill -CONT "$helper_pid"
for ((i = 0; i < 300; i++)); do [[ ! -e z.xlsave ]] || break; lab_pause; done
[[ -e z.xlsave ]] || fail "it was stopped"
goes_on 15
kill -CONT "$create_pid"
wait "$create_pid" || fail "exit status $?"
intact z.xlsave
xl destroy g
detail "a stopped terminal, a pipe that nobody reads, and Ctrl-Z hold up nobody but the report"
