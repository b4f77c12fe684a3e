# Sourced by the lab's scripts on the host: where things are.
# shellcheck shell=bash disable=SC2034

lab_src=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
lab_top=$(cd "$lab_src/../.." && pwd -P)

say() { echo "lab: $*" >&2; }
die() { say "$@"; exit 1; }

# The suites of Debian, each with a release of Xen: that of this machine first, if it is one of them.
lab_suites=(bookworm trixie)
lab_machine=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release 2>/dev/null) || lab_machine=
[[ $lab_machine != trixie ]] || lab_suites=(trixie bookworm)
lab_suite=${XL_LAB_SUITE:-${lab_suites[0]}}
[[ " ${lab_suites[*]} " == *" $lab_suite "* ]] || die "XL_LAB_SUITE=$lab_suite: one of ${lab_suites[*]} is needed"

lab_all=${XL_LAB_DIR:-$lab_top/target/lab}
lab_dir=$lab_all/$lab_suite
mkdir -p "$lab_dir"
lab_all=$(cd "$lab_all" && pwd -P)
lab_dir=$lab_all/$lab_suite

# debian SUITE ROOT PACKAGES OPTION...: makes a minimal Debian in a directory. Its output is in
# $lab_dir/mmdebstrap.log. A download may fail once.
debian() {
	local suite=$1 root=$2 packages=$3 tries
	shift 3
	for tries in 1 2 3; do
		rm -rf --one-file-system "$root"
		# INITRD=No: nobody needs Debian's initramfs, and making it takes a while.
		INITRD=No mmdebstrap --quiet --variant=minbase --format=directory \
			--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
			--dpkgopt=force-unsafe-io "$@" --include="$packages" \
			"$suite" "$root" >"$lab_dir/mmdebstrap.log" 2>&1 && return
	done
	tail -n 20 "$lab_dir/mmdebstrap.log" >&2
	die "mmdebstrap failed, see $lab_dir/mmdebstrap.log"
}

# remove_tree DIRECTORY: an interrupted mmdebstrap can leave mounts behind; never delete through them.
remove_tree() {
	[[ -d $1 ]] || return 0
	awk -v t="$(realpath "$1")/" 'index($2, t) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n1 umount
	rm -rf --one-file-system "$1"
}
