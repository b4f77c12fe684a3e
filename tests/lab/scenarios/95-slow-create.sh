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

# Both write at the same time: each has half of the speed.
rate=$((size / 190)) begin=$SECONDS
slowly $rate xl-snapshot create h --name s1 --memory s/h.xlsave.zst -d xvda,external --no-live --compress zstd:1 &
compressed=$!
slowly $rate xl-snapshot create g --name s1 --memory s/g.xlsave -d xvda,external --no-live &
plain=$!
wait $compressed || fail "the compressed one: exit $?"
first=$((SECONDS - begin))
# The plain one is about seven times as long, and was as slow for as long.
speed $((rate * 10))
wait $plain || fail "the plain one: exit $?"
took=$((SECONDS - begin))
speed max
((first > 360)) || fail "the first took $first s only: that shows nothing"
for g in g h; do
	more_ticks $g 3
	not_torn $g
done
xl-snapshot show s/g.xlsave >show.out || fail "$(<show.out)"
xl-snapshot show --verify s/h.xlsave.zst >show.out || fail "$(<show.out)"
detail "$first s and $took s"
