#!/bin/bash
# A revert of four internal snapshots against the script: xl destroy, qemu-img snapshot -a, xl restore; and
# one from a compressed image.
# timeout: 3600
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

boot() {
	disks_up 4
	guest_up g reboot=destroy mem=256 tick=1000 "${disks[@]}"
}
by_ours() { watched "$1" ours xl-snapshot revert -v "$2" 2>>"$LAB_LOGS/steps-$1.log"; }
by_script() { watched "$1" script bash script.sh; }

up
create g r.xlsave --name r
create g z.xlsave.zst --name z --compress zstd
cat >script.sh <<'SCRIPT'
set -e
qemu=$(xenstore-read "/local/domain/$(xl domid g)/image/device-model-pid")
xl destroy g
while kill -0 "$qemu" 2>/dev/null; do :; done
for disk in a b c d; do qemu-img snapshot -a r $disk.qcow2; done
xl restore r.xlsave
SCRIPT
for ((round = 0; round < rounds; round++)); do
	measure by_ours revert-256-4 r.xlsave
	measure by_script revert-256-4
	measure by_ours revert-zstd-256-4 z.xlsave.zst
done
