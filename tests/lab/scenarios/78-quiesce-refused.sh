#!/bin/bash
# Whatever is wrong with the guest's agent is told, and the guest is not left frozen.
# slow
. /lab/t/lib.sh
. /lab/t/quiesce.sh

agent_initramfs
raw a.img 48M
mkfs.ext4 -F -q a.img
disk="format=raw,vdev=xvda,access=rw,backendtype=qdisk,target=$LAB_WORK/a.img"
socket="$agent_name,connection=socket,path=$agent_path-g.sock"
alone=(xl-snapshot create g.cfg --disk-only --record s.record --name s --quiesce agent)

# No channel; and a first channel, which xl of Xen 4.17 drops.
agent_cfg g "${agent_channels[@]}" -- "$disk"
xl create -q -p g.cfg
refused 3 'no channel named org.qemu.guest_agent.0' "${alone[@]}"
xl destroy g
if [[ -e /usr/lib/xen-4.17 ]]; then
	agent_cfg g "$socket" -- "$disk"
	xl create -q -p g.cfg
	refused 3 'xl drops the first channel' "${alone[@]}"
	xl destroy g
fi

agent_cfg g "${agent_channels[@]}" "$socket" -- "$disk"
agent_up g
# Somebody else is connected.
exec 17> >(exec socat - "UNIX-CONNECT:$agent_path-g.sock" >/dev/null)
lab_pause 1
refused 1 'is in use by another program' "${alone[@]}"
exec 17>&-
agent_there g
# Somebody else has frozen; the command that the message names thaws.
lab_pause 1
answer=$(agent g guest-fsfreeze-freeze)
[[ $(agent g guest-fsfreeze-status) == *'"frozen"'* ]] || fail "g does not freeze: $answer"
rc=0
"${alone[@]}" 2>frozen.out || rc=$?
((rc == 1)) && grep -q 'are frozen already' frozen.out || fail "exit $rc: $(<frozen.out)"
[[ $(agent g guest-fsfreeze-status) == *'"frozen"'* ]] || fail "it thawed what others have frozen"
bash -c "$(sed -n 's/.*thaw them: //p' frozen.out)"
more_ticks g 3
disks=(xl-snapshot create g.cfg --disk-only)
# A program freezes: thawed in any case, and a freeze that failed changes nothing.
mkdir -p /usr/local/sbin
cat >/usr/local/sbin/freezer <<END
#!/bin/bash
echo "\$*" >>$LAB_WORK/calls.out
if [[ \$1 == freeze && -e $LAB_WORK/refuse.out ]]; then echo "no, not now" >&2; exit 3; fi
coproc agent { exec socat - UNIX-CONNECT:$agent_path-g.sock; }
printf '{"execute":"guest-fsfreeze-%s"}\n' "\$1" >&"\${agent[1]}"
read -r -t 9 answer <&"\${agent[0]}"
kill "\$agent_PID"
[[ \$answer == *return* ]] || { echo "the agent says: \$answer" >&2; exit 1; }
END
chmod 777 /usr/local/sbin/freezer
refused 3 'others than root may write to' "${disks[@]}" --name s3 --record s3.record --quiesce /usr/local/sbin/freezer
chmod 755 /usr/local/sbin/freezer
touch refuse.out
refused 1 'no, not now' "${disks[@]}" --name s3 --record s3.record --quiesce /usr/local/sbin/freezer
[[ $(xargs <calls.out) == 'freeze g thaw g'* ]] || fail "it was called as $(xargs <calls.out)"
rm refuse.out calls.out
"${disks[@]}" --name s3 --record s3.record --quiesce /usr/local/sbin/freezer >s3.out
grep -q 'by /usr/local/sbin/freezer' s3.out || fail "the report: $(<s3.out)"
more_ticks g 3
rm /usr/local/sbin/freezer

# Back: no more than what was on the frozen file systems.
mark g
xl-snapshot revert s3.record >revert.out
grep -q 'file systems that were frozen' revert.out || fail "the report: $(<revert.out)"
wait_line g '^BOOT ' 90
agent_there g
more_ticks g 2
not_torn g
rm -f calls.out
# The agent does not answer, and then again.
in_guest g 'sleep 1; kill -STOP $(pidof qemu-ga); sleep 25; kill -CONT $(pidof qemu-ga)'
lab_pause 2
refused 1 'it did not answer' "${alone[@]}"
[[ ! -e s.record.partial ]] || fail "a record is left"
agent_there g
# Nothing is left frozen after a time-out.
cat >/usr/local/sbin/freezer <<END
#!/bin/bash
echo "\$1" >>$LAB_WORK/calls.out
[[ \$1 == thaw ]] || sleep 30
END
chmod 755 /usr/local/sbin/freezer
program=("${alone[@]}")
program[${#program[@]} - 1]=/usr/local/sbin/freezer
refused 1 'did not end in 1 s' "${program[@]}" --freeze-timeout 1
[[ $(xargs <calls.out) == 'freeze thaw' ]] || fail "it was called as $(xargs <calls.out)"
# One that fails, and calls what is not frozen an error: nothing has changed, and nothing stays frozen.
printf '#!/bin/bash\necho "not a mount point" >&2\nexit 1\n' >/usr/local/sbin/freezer
begin=$SECONDS
refused 1 'not a mount point' "${program[@]}"
((SECONDS - begin < 20)) || fail "that took $((SECONDS - begin)) s"
# It does not thaw: that comes first.
printf '#!/bin/bash\n[[ $1 == freeze ]]\n' >/usr/local/sbin/freezer
rc=0
"${program[@]}" 2>thaw.out || rc=$?
((rc == 4)) || fail "exit $rc: $(<thaw.out)"
grep -v '^note:' thaw.out | head -n 1 | grep -q 'are still frozen' || fail "it said: $(<thaw.out)"
grep -q '/usr/local/sbin/freezer thaw g' thaw.out || fail "no word of how to thaw: $(<thaw.out)"
rm /usr/local/sbin/freezer
mv s.record crash.record
xl-snapshot show crash.record | grep -q 'what a power cut would have left' || fail "show of crash.record"
more_ticks g 2

# Debian 12's Linux hangs when it is restored with a second console (docs/quiesce.md): that is told, and the guest that is
# saved goes on.
xl-snapshot create g --name m --memory m.xlsave --no-live 2>notes.out >&2
grep -q 'has a second console' notes.out || fail "no word of the second console: $(<notes.out)"
more_ticks g 2
xl-snapshot create g.cfg --disk-only --record s2.record --name s2 --quiesce agent >s2.out
grep -q 'by the guest agent' s2.out || fail "the report: $(<s2.out)"
more_ticks g 2
# By a terminal, not a socket; and nothing that could be frozen.
xl destroy g
image=$(sed -n 's/.*target=\([^"]*\).*/\1/p' g.cfg)
agent_extra=nomount agent_cfg g "${agent_channels[@]}" "$agent_name,connection=pty" -- \
	"format=qcow2,vdev=xvda,access=rw,target=$image"
mark g
xl create -q g.cfg
wait_line g '^TICK [0-9]' 90
lab_pause 3
rc=0
xl-snapshot create g.cfg --disk-only --record s4.record --name s4 --quiesce agent 2>none.out || rc=$?
((rc == 1)) && grep -q 'Nothing was frozen' none.out || fail "exit $rc: $(<none.out)"
more_ticks g 2
xl destroy g
