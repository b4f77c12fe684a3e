#!/bin/bash
# As in 38-killed, after each single step.
# slow
. /lab/t/lib.sh
. /lab/t/faults.sh

faults_up pv
for ((step = 0; ; step++)); do kill_at "$step" || break; done
((undone > 5 && completed > 1)) || fail "$undone times undone, $completed times completed"
more_ticks g 1
# One that was killed right after the disks had their snapshots.
mark g
xl-snapshot revert "$first"
more_ticks g 3
not_torn g
xl destroy g
qemu_img_check_all
lvm_check vg0
detail "$undone times all was as before, $completed times the snapshot was completed, the guest back in 10 s"
