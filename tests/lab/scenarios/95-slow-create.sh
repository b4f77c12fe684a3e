#!/bin/bash
# Two memory images, one of them compressed, on storage so slow that each takes more than six minutes.
# slow
. /lab/t/lib.sh
. /lab/t/slow.sh

slow_up 300M
for g in g h; do
	qcow2 $g.qcow2 16M
	guest_up $g mem=96 tick=1000 $g.qcow2
	wait_tick $g 2
done
# How long they will be.
declare -A size=() image=([g]=s/g.xlsave [h]=s/h.xlsave.zst) how=([g]=none [h]=zstd:1)
for g in g h; do
	xl-snapshot create $g --name s0 --memory s/s0 --no-live --compress ${how[$g]} -d xvda,none 2>/dev/null
	size[$g]=$(($(stat -c '%b * %B' s/s0)))
	rm s/s0
done

sync -f s
begin=$SECONDS
declare -A pid=() took=()
# Each has a group of its own, and with it its own speed: writes in one group are not served in turns.
for g in g h; do
	group=/sys/fs/cgroup/slow-$g rate=$((size[$g] / 380))
	mkdir -p $group
	echo "$slow_device rbps=$rate wbps=$rate" >$group/io.max
	within $group xl-snapshot create $g --name s1 --memory ${image[$g]} --no-live --compress ${how[$g]} -d xvda,external &
	pid[$g]=$!
done
for g in g h; do
	wait ${pid[$g]} || fail "$g: exit $?"
	took[$g]=$((SECONDS - begin))
done
for g in g h; do
	((took[$g] > 360)) || fail "$g took ${took[$g]} s only: that shows nothing"
	more_ticks $g 3
	not_torn $g
done
xl-snapshot show s/g.xlsave >show.out || fail "$(<show.out)"
xl-snapshot show --verify s/h.xlsave.zst >show.out || fail "$(<show.out)"
detail "${took[h]} s compressed, ${took[g]} s plain"
