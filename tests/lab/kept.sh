# Sourced by the scenarios that name snapshots as DOMAIN/NAME: those of the domain g, below kept/. Needs lib.sh.
# shellcheck shell=bash

export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept/g new

# take NAME ARGUMENT...: a snapshot in the directory of snapshots.
take() {
	local name=$1
	shift
	create g "kept/g/$name.xlsave" --name "$name" --no-live "$@"
}

# good NAME...: these are the snapshots that list calls good, and there is no other.
good() {
	local found
	xl-snapshot list g >table.out
	found=$(awk '$NF == "good" {print ($1 == "*" || $1 == "?") ? $3 : $2}' table.out | sort | xargs)
	[[ $found == "$(printf '%s\n' "$@" | sort | xargs)" ]] || fail "good are: $found; expected: $* ($(<table.out))"
}

# remove NAME ARGUMENT...: deletes a snapshot while the guest runs on its disks.
remove() {
	local name=$1
	shift
	mark g
	xl-snapshot delete -v "g/$name" "$@" >delete.out
	[[ ! -e kept/g/$name.xlsave && ! -e kept/g/$name.xlsave.deleting ]] || fail "the image of $name is there"
	more_ticks g 2
	not_torn g
	for vdev in xvda xvdb; do
		[[ -s $(image_of g $vdev) ]] || fail "libxl names no file for $vdev"
		xl qemu-monitor-command g 'info block' | grep -qF "$(image_of g $vdev)" ||
			fail "QEMU and libxl do not agree on $vdev"
	done
	if command -v getfattr >/dev/null; then
		[[ -z $(getfattr -n user.xl-snapshot.merging ./*.qcow2 2>/dev/null) ]] || fail "a mark is left"
	fi
}
