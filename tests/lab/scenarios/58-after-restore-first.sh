#!/bin/bash
# What follows a revert --restore-first works: snapshots, reboots, reverts; --discard-current, --paused, --copy, too
# little memory, a domain that does not run.
# slow
. /lab/t/lib.sh
. /lab/t/restore-first.sh

ip link show xenbr0 >/dev/null 2>&1 || ip link add xenbr0 type bridge
qcow2 a.qcow2 64M
vg_up vg0 268M
lvcreate -qq -y --type thin-pool -n pool -L 64M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
guest_up g mem=96 tick=300 a.qcow2 /dev/vg0/thin 'cfg=vif = ["mac=00:16:3e:5a:5a:11,bridge=xenbr0"]'
wait_tick g 3
create g s1.xlsave --name s1 --no-live -d xvda,external

stood=$(stand g)
# There is not enough memory for both.
free=$(xl info free_memory)
cat >hog.out <<END
name = "hog"
type = "pv"
memory = $((free - 60))
kernel = "/lab/guest/vmlinux"
ramdisk = "/lab/guest/initramfs"
END
xl create -q -p hog.out
refused 3 'MiB are missing' xl-snapshot revert s1.xlsave --restore-first
xl destroy hog
unharmed g "$stood"

first s1.xlsave

# What follows: a snapshot, a reboot, plain reverts to both, the same again without what is there now.
create g s2.xlsave --name s2 --no-live -d xvda,external
mark g
at=$(tick g)
xl reboot g
wait_line g '^BOOT ' 90
more_ticks g 3
not_torn g
(($(tick g) >= at)) || fail "it did not come up on its disks: tick $(tick g) after $at"
revert g s2.xlsave
revert g s1.xlsave
now=$(image_of g xvda)
count=$(volumes vg0 | wc -w)
first s1.xlsave --discard-current
[[ ! -e $now ]] || fail "$now is still there"
(($(volumes vg0 | wc -w) == count)) || fail "volumes: $(volumes vg0)"

# Left paused.
mark g.restoring
xl-snapshot revert s1.xlsave --restore-first --paused --json >paused.out
[[ $(json outage_ms <paused.out) == null ]] || fail "an outage of a paused guest: $(<paused.out)"
[[ $(xl list g | awk 'NR == 2 {print $5}') == --p* ]] || fail "not paused: $(xl list g)"
nothing_between
xl unpause g
first_went_back s1.xlsave

# What has no second image is copied only if asked.
create g s3.xlsave --name s3 --no-live -d xvda,internal
stood=$(stand g)
refused 3 '--copy' xl-snapshot revert s3.xlsave --restore-first
unharmed g "$stood"
first s3.xlsave --copy
[[ $(image_of g xvda) == *.after-s3.* ]] || fail "xvda is $(image_of g xvda)"

# It does not run: a plain revert.
xl destroy g
gone g
mark g
xl-snapshot revert s1.xlsave --restore-first --json >plain.out
[[ $(json restored_first <plain.out) == false ]] || fail "restored first of nothing: $(<plain.out)"
more_ticks g 3
not_torn g
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "snapshots, a reboot and reverts after it; discarded, paused, copied, off; too little memory refused"
