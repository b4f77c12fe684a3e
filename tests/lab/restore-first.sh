# Sourced by the scenarios of revert --restore-first. Needs lib.sh.
# shellcheck shell=bash
#
# The new domain is called g.restoring until it has taken the place of g, so xl's log and, until xenconsoled is
# told to open its logs again, that of its console have that name.

# first IMAGE ARGUMENT...: a revert of g that restores first; the guest goes on from the snapshot. The report
# is left in first.out.
first() {
	local image=$1 old uuid monitor
	shift
	old=$(domid g)
	uuid=$(uuid_of g)
	mark g
	mark g.restoring
	xl-snapshot revert -v "$image" --restore-first --json "$@" >first.out
	first_went_back "$image"
	[[ $(domid g) != "$old" ]] || fail "it is the same domain"
	[[ $(uuid_of g) == "$uuid" ]] || fail "it has another UUID: $(uuid_of g)"
	[[ $(json restored_first <first.out) == true ]] || fail "it was not restored first: $(<first.out)"
	nothing_between
}

# first_went_back IMAGE: it goes on from there, in the same boot, watched by xl.
first_went_back() {
	local image=$1 at
	more_ticks g.restoring 3
	not_torn g.restoring
	at=$(console g.restoring | awk '/^TICK [0-9]+ boot=/ {print $2; exit}')
	((at >= lab_from[$image] && at <= lab_until[$image])) ||
		fail "g goes on with $at, $image is of ${lab_from[$image]} to ${lab_until[$image]}"
	[[ $(boot_id g.restoring) == "${lab_boot[$image]}" ]] || fail "g: another boot after $image"
	xl_monitor_pid g.restoring >/dev/null || fail "g has no xl process after the revert"
	consoles_again
	mark g
	more_ticks g 2
}

# consoles_again: the logs of the consoles have the names of their domains, as after a logrotate.
consoles_again() { kill -HUP "$(pidof xenconsoled)"; }

uuid_of() { xl list -v "$1" | awk 'NR == 2 {for (i = 1; i <= NF; i++) if (length($i) == 36 && $i ~ /^[0-9a-f-]+$/) print $i}'; }

# nothing_between: there is one g, and nothing of what was there meanwhile.
nothing_between() {
	local others id uuid
	others=$(xl list | awk '$1 ~ /^g\./ || $1 == "(null)"')
	[[ -z $others ]] || fail "left: $others"
	id=$(domid g)
	uuid=$(uuid_of g)
	[[ $(xenstore-read "/local/domain/$id/vm") == "/vm/$uuid" ]] || fail "g has another /vm in xenstore"
	[[ $(xenstore-read "/vm/$uuid/name") == g ]] || fail "/vm/$uuid has another name"
	xenstore-read "/vm/$uuid/start_time" >/dev/null || fail "/vm/$uuid lacks what was in it"
	# Domain 0 has none.
	[[ $(xenstore-list /vm | grep -vc '^00000000-') == 1 ]] || fail "left in xenstore: $(xenstore-list /vm | xargs)"
	[[ $(xl list -l g) == *'"name": "g"'* ]] || fail "libxl has another name"
}

# first_every_disk TYPE: a guest of that type with a disk of every kind (see kinds.sh) is restored first; what follows
# works, too.
first_every_disk() {
	local type=$1 stood outage at disk
	local copied=(--copy --overlay-dir "$LAB_WORK/copies") options=(-d xvdb,external -d xvdf,reflink)
	mkdir copies
	kinds_up g "type=$type" mem=96 tick=1000 wait=300
	create g s1.xlsave --name s1 --no-live "${options[@]}"
	# xvda has an internal snapshot, and xvdd is a thick volume.
	stood=$(stand g)
	refused 3 '--copy' xl-snapshot revert s1.xlsave --restore-first
	unharmed g "$stood"
	first s1.xlsave "${copied[@]}"
	kinds_cells "$type" "restored first"
	for disk in xvda xvdd; do
		[[ $(image_of g $disk) == "$LAB_WORK"/copies/*.after-s1.* ]] || fail "$disk is $(image_of g $disk)"
	done
	outage=$(ms "$(json outage_ms <first.out)")
	((outage < 3000)) || fail "it was away for $outage ms"

	# A snapshot of the disks as they are now, a reboot, and both kinds of revert.
	create g s2.xlsave --name s2 --no-live "${options[@]}"
	mark g
	at=$(tick g)
	xl reboot -F g
	wait_line g '^BOOT ' 300
	more_ticks g 3
	not_torn g
	(($(tick g) >= at)) || fail "it did not come up on its disks: tick $(tick g) after $at"
	revert g s2.xlsave
	first s2.xlsave "${copied[@]}" --discard-current
	kinds_check g
	detail "away for $outage ms"
}
