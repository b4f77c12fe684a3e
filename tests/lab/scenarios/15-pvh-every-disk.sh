#!/bin/bash
# A PVH guest with a disk of every kind, saved while it runs and while it stands still.
# slow
. /lab/t/kinds.sh

kinds_up g type=pvh tick=500
options=(-d xvdb,external -d xvdf,reflink)
create g s1.xlsave --name s1 --live "${options[@]}"
[[ $(json live <s1.xlsave.json) == true ]] || fail "it was not saved live"
kinds_cells pvh live
revert g s1.xlsave
kinds_cells pvh revert
# On top of what the first one left: xvdb, xvde and xvdg have overlays by now.
create g s2.xlsave --name s2 --no-live "${options[@]}"
kinds_cells pvh "not live"
xl destroy g
revert g s2.xlsave
kinds_cells pvh "when gone"
kinds_check g
detail "pause $(ms "$(json pause_ms <s1.xlsave.json)") ms live, $(ms "$(json pause_ms <s2.xlsave.json)") ms not live"
