#!/bin/bash
# Each exit status from the real program, with what stands on standard output and error; waiting for the
# lock; XL_SNAPSHOT_DIR; progress and escape sequences on terminals and elsewhere.
# slow
. /lab/t/lib.sh

faulty=/usr/local/sbin/xl-snapshot-faults
escape=$'\e'

# ends CODE WORDS COMMAND...: it ends with that exit status; standard output has a JSON object if that is 0
# and nothing else, standard error has the words, and no escape sequence.
ends() {
	local want=$1 words=$2 rc=0
	shift 2
	"$@" >ends.out 2>ends.err.out || rc=$?
	cat ends.err.out >&2
	((rc == want)) || fail "exit status $rc instead of $want: $* ($(<ends.err.out))"
	if ((want == 0)); then
		[[ $(head -n 1 ends.out) == '{' && $(tail -n 1 ends.out) == '}' ]] || fail "no JSON: $*: $(<ends.out)"
	else
		[[ ! -s ends.out ]] || fail "a failure printed a result: $*: $(<ends.out)"
		grep -q '^xl-snapshot: ' ends.err.out || fail "no error: $*: $(<ends.err.out)"
	fi
	[[ $(<ends.err.out) == *"$words"* ]] || fail "no word of '$words' in: $(<ends.err.out)"
	! grep -q "$escape" ends.err.out || fail "escape sequences in a file: $(cat -v ends.err.out)"
}

qcow2 a.qcow2 64M
guest_up g mem=96 tick=300 a.qcow2
wait_tick g 2
monitor=$(xl_monitor_pid g)

# 0, where the environment says; -q says nothing.
export XL_SNAPSHOT_DIR=$LAB_WORK/kept
ends 0 '' xl-snapshot create g --name s0 --no-live --json -q
[[ ! -s ends.err.out ]] || fail "-q printed: $(<ends.err.out)"
image=$(json image <ends.out)
[[ $image == "$LAB_WORK/kept/g/s0.xlsave" && -f $image ]] || fail "the image is in $image"
[[ $(stat -c %a kept/g) == 700 ]] || fail "others can look into its directory"
ends 2 'XL_SNAPSHOT_DIR=kept' env XL_SNAPSHOT_DIR=kept xl-snapshot create g --json
unset XL_SNAPSHOT_DIR

# 1: as before. A step fails before it is done.
before=$(stand g)
ends 1 'hint:' env FAULTS=1:fails "$faulty" create g --name s1 --no-live --memory s1.xlsave --json
unharmed g "$before"

# 2 and 3.
refused 2 'unexpected argument' xl-snapshot create g --json --frobnicate
ends 3 'hint:' xl-snapshot create nobody --json
ends 3 "${image} exists" xl-snapshot create g --name s3 --no-live --memory "$image" --json
ends 3 'No such file' xl-snapshot revert nothing.xlsave --json
ends 3 'No such file' xl-snapshot show nothing.xlsave --json
[[ $before == "$(stand g)" ]] || fail "a refusal changed something"

# 4: its xl process is not woken, or, where xl need not be held (4.20), the guest is not resumed; the command that
# is printed does it.
xl-snapshot create g --name s4 --no-live --memory s4.xlsave --dry-run >dry.out
wake=$(awk '/ continue the/ {print $1 - 1}' dry.out)
resume=$(awk '/ resume / {print $1 - 1}' dry.out)
ends 4 'left:  ' env FAULTS="${wake:-$resume}:fails" "$faulty" create g --name s4 --no-live --memory s4.xlsave --json
command=$(sed -n '/^left:/{n;s/^  *//p}' ends.err.out)
if [[ $wake ]]; then
	grep -q "left:  Not done: continue the domain's xl process $monitor" ends.err.out
	[[ $(ps -o stat= -p "$monitor") == T* ]] || fail "the xl process was woken all the same"
	[[ $command == "kill -CONT $monitor" ]] || fail "the command is '$command'"
else
	[[ $command == "xl-snapshot revert $LAB_WORK/s4.xlsave" ]] || fail "the command is '$command'"
	mark g
fi
eval "$command"
more_ticks g 2
xl-snapshot show s4.xlsave >show.out
grep -q 'can be reverted to' show.out
# All is done, but nobody gets to know: not 0, and not 1.
rc=0
xl-snapshot create g --name s5 --no-live --memory s5.xlsave >/dev/full 2>full.out || rc=$?
((rc == 4)) && grep -q 'All was done' full.out && grep -q 's5.xlsave' full.out || fail "exit status $rc: $(<full.out)"

# Another one has the domain, long enough for a line of progress.
begin=$SECONDS
hold_create g held.xlsave --name held --no-live
holder="xl-snapshot create held (process $create_pid) "
ends 3 "$holder" xl-snapshot create g --name w1 --json
ends 3 "$holder" xl-snapshot revert "$image" --json
ends 3 "${holder}still has it after 1 s" xl-snapshot create g --name w1 --json --wait 1
[[ $(grep -c '^note: waiting for g, 1 s at most' ends.err.out) == 1 ]] || fail "it does not say that it waits"
ends 3 "$holder" xl-snapshot create g --name w1 --json --wait 1 -q
[[ $(<ends.err.out) != *note:* ]] || fail "-q printed: $(<ends.err.out)"
xl-snapshot create g --name w2 --json --wait 60 >w2.out 2>w2.err.out &
waiting=$!
until grep -qs waiting w2.err.out; do lab_pause 0.1; done
kill -TERM $waiting
rc=0
wait $waiting || rc=$?
((rc == 1)) && grep -q 'stopped by a signal' w2.err.out || fail "exit status $rc: $(<w2.err.out)"
[[ ! -s w2.out ]]
xl-snapshot create g --name w3 --no-live --memory w3.xlsave --json --wait 60 -q >w3.out 2>w3.err.out &
waiting=$!
while ((SECONDS - begin < 14)); do lab_pause; done
let_create 0 'saving memory: '
grep -Eq '^saving memory: [0-9]+ % of [0-9.]+ MiB after [0-9]+ s$' errors.out || fail "no progress: $(<errors.out)"
wait $waiting || fail "exit status $? after the waiting: $(<w3.err.out)"
[[ $(json name <w3.out) == w3 && ! -s w3.err.out ]] || fail "it printed: $(<w3.out) $(<w3.err.out)"
more_ticks g 2
not_torn g

# A terminal, by script(1): a bar, and colours; without, if the user asks for that.
terminal() { TERM=xterm SHELL=/bin/sh script -q -e -c "$1" /dev/null </dev/null >terminal.out; }
mark g
terminal "xl-snapshot revert $image"
grep -q "restoring memory .*\[" terminal.out || fail "no bar: $(cat -v terminal.out)"
grep -q "$escape\\[.*note:" terminal.out || fail "no colour: $(cat -v terminal.out)"
more_ticks g 2
not_torn g
NO_COLOR=1 terminal "xl-snapshot create g --name dull --no-live --memory dull.xlsave"
! grep -q "$escape" terminal.out || fail "NO_COLOR is ignored: $(cat -v terminal.out)"
xl destroy g
detail "0, 1, 2, 3, 4, and 3 after a wait for $holder"
