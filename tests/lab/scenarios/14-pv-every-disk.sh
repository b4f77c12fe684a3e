#!/bin/bash
# A PV guest with a disk of every kind: one instant for all of them.
# slow
. /lab/t/kinds.sh

kinds_up g type=pv tick=500
create g s1.xlsave --name s1 --no-live -d xvdb,external -d xvdf,reflink
kinds_cells pv "not live"
xl destroy g
revert g s1.xlsave
kinds_cells pv "when gone"
revert g s1.xlsave
kinds_cells pv revert
[[ $(volumes vg0) == *thick.s1*thin.s1* ]] || fail "a snapshot did not survive: $(volumes vg0)"
show=$(xl-snapshot show s1.xlsave --json)
[[ $(json revertible <<<"$show") == true ]] || fail "show says it cannot be reverted to: $show"
kinds_check g
detail "pause $(ms "$(json pause_ms <s1.xlsave.json)") ms with ${#kinds[@]} disks"
