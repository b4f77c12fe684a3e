#!/bin/bash
# A revert of four internal snapshots against the script: xl destroy, qemu-img snapshot -a, xl restore; and
# one from a compressed image.
# timeout: 3000
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

disks_up 4
guest_up g mem=256 tick=300 "${disks[@]}"
wait_tick g 3
create g r.xlsave --name r
create g z.xlsave.zst --name z --compress zstd
cat >script.sh <<'SCRIPT'
set -e
xl destroy g
while pgrep -f 'qemu-system.* -name g ' >/dev/null; do :; done
for disk in a b c d; do qemu-img snapshot -a r $disk.qcow2; done
xl restore r.xlsave
SCRIPT
for ((round = 0; round < rounds; round++)); do
	watched revert-256-4 ours g xl-snapshot revert r.xlsave -vv 2>"$LAB_LOGS/steps-revert-$round.log"
	more_ticks g 2
	watched revert-256-4 script g bash script.sh
	more_ticks g 2
	watched revert-zstd-256-4 ours g xl-snapshot revert z.xlsave.zst
	more_ticks g 2
done
not_torn g
