#!/bin/bash
# SPEC.toml, pipes, --paused, the default place, domains by number, UUID and file, JSON, dry runs.
# slow
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 64M; done
guest_up g tick=300 a.qcow2 b.qcow2
wait_tick g 3
boot=$(boot_id g)
uuid=$(xl list -l g | sed -n 's/.*"uuid": "\(.*\)".*/\1/p')

# A dry run changes nothing and names everything.
stand() { find . -type f -printf '%p %s %T@\n' | grep -v -e '\.out' -e '\.qcow2 ' | sort; ls "$images" 2>&1 || :; }
before=$(stand)
xl-snapshot create "$uuid" --name s1 --dry-run -d xvdb,external >plan.out
grep -q 'one QMP transaction: xvda internal s1; xvdb to overlay' plan.out
xl-snapshot create "$(domid g)" --name s1 --dry-run --json >plan.out
grep -q '"commit"' plan.out
[[ $before == "$(stand)" ]] || fail "a dry run left something"

# A SPEC.toml; the domain by its configuration file.
cat >before.toml <<END
name = "before"
description = "by file"
live = false
memory = "before.xlsave"
[[disk]]
vdev = "xvdb"
snapshot = "external"
file = "elsewhere.qcow2"
END
xl-snapshot create g.cfg before.toml --paused >report.out
xl list g | grep -q -- '--p---' || fail "it is not paused"
[[ -f before.xlsave && -f elsewhere.qcow2 ]]
grep -q "config .*g.cfg.bak-before" report.out
grep -q "target=$LAB_WORK/elsewhere.qcow2" g.cfg
xl unpause g
more_ticks g 2
not_torn g
mark g
xl-snapshot revert before.toml --paused
xl list g | grep -q -- '--p---' || fail "it is not paused after the revert"
mark g
lab_pause 2
[[ -z $(console g | grep TICK || :) ]] || fail "a paused guest ticks"
xl unpause g
more_ticks g 2
not_torn g
[[ $(boot_id g) == "$boot" ]]
xl-snapshot show before.toml >show.out
grep -q 'by file' show.out

# Through pipes, there and back.
lab_boot[piped]=$boot lab_from[piped]=$(tick g)
xl-snapshot create g --name piped --memory - --no-live -q | gzip -1 >piped.gz
lab_until[piped]=$(($(tick g) + 1))
wait_tick g $((lab_until[piped] + 2))
mark g
gzip -dc piped.gz | xl-snapshot revert -
went_back g piped
# A pipe that ends too soon destroys nothing.
id=$(domid g)
head -c 3000000 < <(gzip -dc piped.gz) >part
refused 3 'truncated' xl-snapshot revert - <part
[[ $(domid g) == "$id" ]]

# A reader that goes away: the guest goes on, nothing is left.
rc=0
{ xl-snapshot create g --name broken --memory - --no-live -q -d xvda,external 2>errors || echo $? >code; } | head -c 1000000 >/dev/null
[[ $(<code) == 1 ]] || fail "exit status $(<code) for a broken pipe: $(<errors)"
[[ ! -e g-xvda.after-broken.qcow2 ]]
more_ticks g 2
not_torn g

# The default place and name.
xl-snapshot create g --no-live --json >created.json
image=$(json image <created.json)
[[ $image == "$images"/g/snap-20*.xlsave && -f $image ]] || fail "the image is not in its place: $image"
[[ $(stat -c %a "$images/g") == 700 ]]
grep -q '"pause_ms": [0-9]' created.json
# --discard-current deletes what was written since.
xl-snapshot create g --name last --no-live --memory last.xlsave -d xvda,external
more_ticks g 1
kept_inside() { qemu-img info -U -f qcow2 "$(image_of g xvdb)" | grep -c before-revert || :; }
kept=$(kept_inside)
xl-snapshot revert last.xlsave --discard-current
[[ ! -e g-xvda.after-last.qcow2 ]] || fail "the overlay was not deleted"
[[ $kept == "$(kept_inside)" ]] || fail "the internal snapshot was not deleted"
more_ticks g 2
not_torn g
xl destroy g
qemu_img_check_all
detail "SPEC.toml, pipes, paused, defaults, discard"
