#!/bin/bash
# prune: with internal and external snapshots of a running guest, what the rules do not keep goes, the oldest
# first; the kept ones revert; the current one and what a clone rests on stay; exit statuses.
# slow
. /lab/t/lib.sh
. /lab/t/kept.sh

# pruned KEY <JSON: the names in that list, on one line.
pruned() { python3 -c 'import json,sys; print(*[s["name"] for s in json.load(sys.stdin)[sys.argv[1]]])' "$1"; }
names() { xl-snapshot list --json g | python3 -c 'import json,sys; print(*[s["name"] for s in json.load(sys.stdin)["snapshots"]])'; }

qcow2 a.qcow2 32M
qcow2 b.qcow2 32M
guest_up g tick=300 mem=96 a.qcow2 b.qcow2
wait_tick g 2

refused 2 'required' xl-snapshot prune g
refused 2 'keep-last' xl-snapshot prune --keep-last 0 g
refused 3 'There is no domain nobody' xl-snapshot prune --keep-last 1 nobody

take s1 -d xvdb,external
take s2 -d xvdb,external
take by-hand -d xvdb,external
take s3 -d xvdb,external

# A dry run changes nothing, and says what the real run does.
before=$(stand g)
xl-snapshot prune --dry-run --json --prefix s --keep-last 1 g >dry.out
[[ $(pruned deleted <dry.out) == "s1 s2" && $(pruned kept <dry.out) == "by-hand s3" ]] || fail "$(<dry.out)"
[[ $(names) == "s1 s2 by-hand s3" && $before == "$(stand g)" ]] || fail "the dry run changed something: $(names)"

# Somebody else works on the domain.
hold_create g held.xlsave --name held --no-live -d xvda,none -d xvdb,none
refused 3 'xl-snapshot create held' xl-snapshot prune --prefix s --keep-last 1 g
let_create 0
[[ $(names) == "s1 s2 by-hand s3" ]] || fail "$(names)"

mark g
xl-snapshot prune --json --prefix s --keep-last 1 g >real.out
[[ $(pruned deleted <real.out) == "s1 s2" && $(pruned kept <real.out) == "by-hand s3" ]] || fail "$(<real.out)"
[[ $(names) == "by-hand s3" && ! -e kept/g/s1.xlsave && ! -e kept/g/s2.xlsave ]] || fail "$(names)"
more_ticks g 2
not_torn g
for name in by-hand s3; do
	[[ $(xl-snapshot show "g/$name" --json | json revertible) == true ]] || fail "$(xl-snapshot show "g/$name")"
done
xl-snapshot prune --json --prefix s --keep-last 1 g >again.out
[[ -z $(pruned deleted <again.out) ]] || fail "not the same twice: $(<again.out)"

# The kept ones revert, and the one that the domain then continues from is kept whatever the rules say.
revert g kept/g/by-hand.xlsave
xl-snapshot prune --keep-last 1 g >current.out
grep -Eq '^  keep +by-hand .* g continues from it$' current.out || fail "$(<current.out)"

# So is one that a clone rests on.
xl-snapshot revert -q g/by-hand --as k --overlay-dir new >k.out
more_ticks k 2 120
revert g kept/g/s3.xlsave
xl-snapshot prune --keep-last 1 g >clone.out
grep -Eq '^  keep +by-hand .* k needs it$' clone.out || fail "$(<clone.out)"
[[ $(names) == "by-hand s3" ]] || fail "$(names)"
not_torn k
xl destroy k
more_ticks g 2
not_torn g
xl destroy g
qemu_img_check_all
detail "pruned with the guest running; the kept ones revert; the current one and a clone's stay"
