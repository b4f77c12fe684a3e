#!/bin/bash
# How long there is no running domain, of a revert to an external snapshot: restored first, plain, and by the
# script: xl destroy, a new overlay for each disk, xl restore. One disk and eight, 256 MiB and 1 GiB.
# timeout: 7200
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh
. /lab/t/restore-first.sh

# away CASE WHO COMMAND...: as watched, of whatever domain has the UUID.
away() {
	local id
	id=$(domid g) && samples "$1" "$2" same-uuid "$id" "${@:3}"
}
by_first() {
	away "$1" first xl-snapshot revert r.xlsave --restore-first --discard-current --json -v \
		2>>"$LAB_LOGS/steps-first-$1.log" || return 1
	sample "$1" first reported "$(us "$(json outage_ms <watched.out)")"
	more_ticks g.restoring 1
	consoles_again
}
by_plain() {
	away "$1" plain xl-snapshot revert r.xlsave --discard-current --json -v \
		2>>"$LAB_LOGS/steps-plain-$1.log" || return 1
	sample "$1" plain reported "$(us "$(json outage_ms <watched.out)")"
}
by_script() {
	away "$1" script bash script.sh "${disks[@]}" || return 1
	# The next revert rests on the same images, and takes these away.
	rm -f -- *.script.qcow2.old
}
cat >script.sh <<'SCRIPT'
set -e
qemu=$(xenstore-read "/local/domain/$(xl domid g)/image/device-model-pid")
xl destroy g
while kill -0 "$qemu" 2>/dev/null; do :; done
cp g.cfg script.cfg
for disk; do
	if [[ -e ${disk%.qcow2}.script.qcow2 ]]; then mv -f "${disk%.qcow2}.script.qcow2" "${disk%.qcow2}.script.qcow2.old"; fi
	qemu-img create -q -f qcow2 -F qcow2 -b "$PWD/$disk" "${disk%.qcow2}.script.qcow2"
	sed -i "s|target=$PWD/$disk\"|target=$PWD/${disk%.qcow2}.script.qcow2\"|" script.cfg
done
xl restore script.cfg r.xlsave
SCRIPT
for mem in 256 1024; do
	for count in 1 8; do
		((mem == 256 || count == 1)) || continue
		boot() {
			disks_up "$count"
			guest_up g reboot=destroy "mem=$mem" tick=1000 "${disks[@]}"
			rm -f r.xlsave ./*.after-*
			options=()
			for vdev in "${vdevs[@]}"; do options+=(-d "$vdev,external"); done
			create g r.xlsave --name r "${options[@]}"
		}
		up
		for ((round = 0; round < rounds; round++)); do
			measure by_first "outage-$mem-$count"
			measure by_plain "outage-$mem-$count"
			measure by_script "outage-$mem-$count"
		done
		xl destroy g
		gone g
		booted=
		rm -f ./*.qcow2
	done
done
