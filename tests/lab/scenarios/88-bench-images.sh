#!/bin/bash
# What ten memory images cost that are taken one after the other of an idle guest, of one that writes 1 MB/s to its memory,
# and of one that is booted anew between them: as xl save writes them, with holes, with pages that are shared, and by zstd.
# timeout: 7200
# bench
. /lab/t/lib.sh
. /lab/t/bench.sh

count=${BENCH_IMAGES:-10}
xfs_up x 3G
mkdir holes zstd x/shared
# used PLACE: bytes that are in use on its file system.
used() { sync -f "$1" && df --output=used -B1 "$1" | tail -n 1 | xargs; }

# image CASE WAY FILE ARGUMENT...: one snapshot and its time.
image() {
	local case=$1 way=$2 file=$3
	shift 3
	cost "$case" "$way" xl-snapshot create g --name "$way$n" --memory "$file" --json -d xvda,none "$@"
}
plain() {
	rm -f plain.xlsave
	cost "$1" plain xl save -c g plain.xlsave && sample "$1" plain bytes "$(stat -c %s plain.xlsave)"
}
holes() {
	rm -f "holes/$n.xlsave"
	image "$1" holes "holes/$n.xlsave" && sample "$1" holes bytes "$(($(stat -c %b "holes/$n.xlsave") * 512))"
	# The next one is to find none that could share pages with it.
	rm -f "holes/$n.xlsave"
}
zstd() {
	image "$1" zstd "zstd/$n.xlsave.zst" --compress zstd && sample "$1" zstd bytes "$(stat -c %s "zstd/$n.xlsave.zst")"
	rm -f "zstd/$n.xlsave.zst"
}
shared() {
	local before
	rm -f "x/shared/$n.xlsave"
	before=$(used x)
	image "$1" shared "x/shared/$n.xlsave" && sample "$1" shared bytes "$(($(used x) - before))"
}
for kind in ${BENCH_GUESTS:-idle busy rebooted}; do
	extra=()
	[[ $kind != busy ]] || extra=(extra=dirty_mb=1)
	boot() {
		disks_up 1
		guest_up g tries=8 type=pvh mem=128 tick=1000 "${extra[@]}" "${disks[@]}"
	}
	up
	for ((n = 1; n <= count; n++)); do
		if [[ $kind == rebooted ]] && ((n > 1)); then
			# Not by xl reboot: the emulator spoils one boot in fifteen.
			xl destroy g
			gone g
			up
		fi
		for way in plain holes zstd shared; do measure $way "images-$kind"; done
	done
	xl destroy g
	gone g
	booted=
	rm -f x/shared/*
done
