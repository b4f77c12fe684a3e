#!/bin/bash
# Two memory images, one of them compressed, on storage so slow that each takes more than six minutes.
# timeout: 900
# slow
. /lab/t/lib.sh
. /lab/t/slow.sh

slow_up 300M
for g in g h; do
	qcow2 $g.qcow2 16M
	guest_up $g mem=96 tick=1000 $g.qcow2
	wait_tick $g 2
done
# How long the compressed one will be.
xl-snapshot create h --name s0 --memory s/s0.xlsave.zst --no-live --compress zstd:1 -d xvda,none 2>/dev/null
size=$(stat -c %s s/s0.xlsave.zst)
rm s/s0.xlsave.zst

begin=$SECONDS
# The first has about three times the length of the second; when both write, each has half.
slowly $((size / 190)) bash -c 'xl-snapshot create h --name s1 --memory s/h.xlsave.zst -d xvda,external --no-live --compress zstd:1 & xl-snapshot create g --name s1 --memory s/g.xlsave -d xvda,external --no-live & wait -n; echo $((SECONDS)) >first.out; wait'
took=$((SECONDS - begin)) first=$(<first.out)
speed max
((first > 360)) || fail "the first took $first s only: that shows nothing"
for g in g h; do
	more_ticks $g 3
	not_torn $g
done
xl-snapshot show s/g.xlsave >show.out || fail "$(<show.out)"
xl-snapshot show --verify s/h.xlsave.zst >show.out || fail "$(<show.out)"
detail "$first s and $took s"
