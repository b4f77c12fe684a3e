#!/bin/bash
# Snapshots without memory: of a domain that does not run, made by hand, and of one that runs if the user
# insists. Each is reverted to; the domain is started from its configuration file, which stays true.
# slow
. /lab/t/lib.sh

vg_up vg0 120M
lvcreate -qq -y -n l -V 8M --thinpool pool -L 48M vg0
qcow2 a.qcow2 32M
raw b.img 32M
guest_up g tick=300 a.qcow2 b.img /dev/vg0/l
wait_tick g 3

# back RECORD FROM TO: reverts, and the guest comes up anew on what its disks held then.
back() {
	mark g
	xl-snapshot revert "$1" >report.out
	grep -q 'memory  none: it was restarted' report.out || fail "the report: $(<report.out)"
	wait_line g '^BOOT ' 90
	found=$(console g | sed -n 's/^BOOT .*found=\([0-9]*\).*/\1/p' | tail -n 1)
	((found >= $2 && found <= $3 + 1)) || fail "$1: the disks hold $found, not $2 to $3"
	more_ticks g 2
	xl_monitor_pid g >/dev/null || fail "$1: g has no xl process"
	not_torn g
	xl -N create g.cfg >parsed.out
	for vdev in xvda xvdb; do
		grep -q "\"pdev_path\": \"$(image_of g $vdev)\"" parsed.out || fail "g.cfg does not name $(image_of g $vdev)"
	done
}

# A running guest's disks alone are refused, with the reason.
before=$(stand g)
refused 3 'what a power cut leaves' xl-snapshot create g.cfg --record r.record
refused 3 'what a power cut leaves' xl-snapshot create g.cfg --disk-only
refused 2 'is for --disk-only' xl-snapshot create g.cfg --record r.record --crash-consistent
refused 3 'cannot be switched while it runs' xl-snapshot create g.cfg --record r.record --disk-only --crash-consistent
refused 3 'no known xl configuration file' xl-snapshot create g --record r.record --disk-only --crash-consistent
unharmed g "$before"

# Shut down: the disks as it left them.
xl shutdown g
gone g 60
down=$(tick g)
cp g.cfg before.cfg
refused 3 '--record FILE' xl-snapshot create g.cfg
refused 2 '--memory is for' xl-snapshot create g.cfg --record off.record --memory x.xlsave
refused 2 'cannot be left paused' xl-snapshot create g.cfg --record off.record --paused
xl-snapshot create g.cfg --name off --record off.record --dry-run >plan.out
grep -q 'take the internal snapshot off in' plan.out || fail "the plan: $(<plan.out)"
cmp g.cfg before.cfg && [[ ! -e off.record && ! -e g-xvdb.after-off.qcow2 ]] || fail "a dry run changed something"
xl-snapshot create g.cfg --name off --record off.record --json >off.json
grep -q '"disks_only": "offline"' off.json || fail "the report: $(<off.json)"
[[ $(stat -c %a off.record) == 600 ]] || fail "the record is not for root alone"
cmp before.cfg g.cfg.bak-off || fail "the backup is not the file as it was"
refused 3 'off.record exists' xl-snapshot create g.cfg --name off2 --record off.record
xl-snapshot show off.record >show.out
grep -q 'can be reverted to' show.out && grep -q 'the domain did not run' show.out || fail "show: $(<show.out)"
base=$(sha256sum b.img)
back off.record "$down" "$down"
[[ $base == "$(sha256sum b.img)" ]] || fail "the base was written to"

# One that runs, because the user insists: an overlay, one inside, a volume, all at one instant.
more_ticks g 1
from=$(tick g)
monitor=$(xl_monitor_pid g)
xl-snapshot create g.cfg --name crash --record crash.record --disk-only --crash-consistent -d xvdb,external >report.out
grep -q 'what a power cut would have left' report.out || fail "the report: $(<report.out)"
until=$(($(tick g) + 1))
more_ticks g 4
not_torn g
[[ $(xl_monitor_pid g) == "$monitor" ]] || fail "the xl process is gone"
detail "pause $(sed -n 's/  pause   \(.*\) ms of.*/\1/p' report.out) ms of a running guest"
back crash.record "$from" "$until"

# By hand: a snapshot inside of one image, an overlay on the other; without the volume.
xl shutdown g
gone g 60
down=$(tick g)
xl -N create g.cfg >parsed.out
frozen=$(awk -F'"' '$2 == "pdev_path" {p = $4} $2 == "vdev" && $4 == "xvdb" {print p}' parsed.out)
qemu-img snapshot -c hand a.qcow2
qemu-img create -q -f qcow2 -F qcow2 -b "$frozen" hand.qcow2
sed -i -e "s,$frozen,$LAB_WORK/hand.qcow2," -e 's/,"format=raw,vdev=xvdc[^"]*"//' g.cfg
printf 'name = "hand"\nconfig = "g.cfg"\n' >hand.toml
printf '[[disk]]\nvdev = "xvda"\nsnapshot = "internal"\n' >>hand.toml
refused 3 'does not say which snapshot it has' xl-snapshot revert hand.toml
printf '[[disk]]\nvdev = "xvdb"\nsnapshot = "external"\n' >>hand.toml
sed 's/"hand"/"gone"/' hand.toml >gone.toml
refused 3 'it has no snapshot gone' xl-snapshot revert gone.toml
mark g
xl create -q g.cfg
wait_line g '^BOOT ' 90
more_ticks g 4
# It cannot be started: it is down, the file is as it was, and it says how to go on.
sed -i 's,^kernel = "/lab,kernel = "/nowhere,' g.cfg
cp g.cfg before.cfg
refused 4 'Domain g is down' xl-snapshot revert hand.toml
gone g 5
cmp g.cfg before.cfg || fail "a failed start left another file"
sed -i 's,^kernel = "/nowhere,kernel = "/lab,' g.cfg
back hand.toml "$down" "$down"
xl destroy g
qemu_img_check_all
