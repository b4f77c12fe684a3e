#!/bin/bash
# An HVM guest with PV drivers and a disk of every kind. Slow under emulation.
# timeout: 1200
# slow
. /lab/t/kinds.sh

kinds_up g type=hvm tick=1000 wait=300
options=(-d xvdb,external -d xvdf,reflink)
# QEMU takes no internal snapshot of a guest that was saved live, so this one is not.
create g s1.xlsave --name s1 --live "${options[@]}"
[[ $(json live <s1.xlsave.json) == false ]] || fail "it was saved live with an internal snapshot"
kinds_cells hvm "not live"
revert g s1.xlsave
kinds_cells hvm revert
# xvde and xvdg have qcow2 overlays by now.
create g s2.xlsave --name s2 --live "${options[@]}" -d xvda,external -d xvde,external -d xvdg,external
[[ $(json live <s2.xlsave.json) == true ]] || fail "it was not saved live"
kinds_cells hvm live
cell internal hvm live "saved not live"
xl destroy g
revert g s2.xlsave
kinds_cells hvm "when gone"
kinds_check g
detail "pause $(ms "$(json pause_ms <s2.xlsave.json)") ms live, $(ms "$(json pause_ms <s1.xlsave.json)") ms not live"
