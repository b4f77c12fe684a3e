#!/bin/bash
# The program is killed after some steps of a create: a base is marked, the guest is suspended, its
# configuration is ahead of its disks, the disks have their snapshots. Its guard takes everything back
# or completes the snapshot, and within 10 s the guest counts on and its xl process is awake.
. /lab/t/lib.sh
. /lab/t/faults.sh

faults_up pv
# From xl 4.20 on its process is not held, which is one step less.
stops=$(xl-snapshot create g --no-live --name dry --memory dry.xlsave -d xvdb,external --dry-run | grep -c ' stop the' || :)
for step in 1 $((3 + stops)) $((6 + stops)) $((8 + stops)); do kill_at $step; done
((undone == 3 && completed == 1)) || fail "$undone times undone, $completed times completed"
# One that was killed right after the disks had their snapshots.
mark g
xl-snapshot revert "$first"
more_ticks g 3
not_torn g
# A descriptor that the caller has open, as 19 here is, gets to no program that goes on.
qemu=$(xenstore-read "/local/domain/$(domid g)/image/device-model-pid")
leaked=$(find "/proc/$qemu/fd" "/proc/$(xl_monitor_pid g)/fd" -lname "$LAB_LOGS/output.log")
[[ -z $leaked ]] || fail "inherited: $leaked"
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "$undone times all was as before, $completed times the snapshot was completed, the guest back in 10 s"
