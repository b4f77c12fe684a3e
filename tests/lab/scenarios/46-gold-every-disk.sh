#!/bin/bash
# A new domain with a disk of every kind, beside the running original, which can still be put back.
# slow
. /lab/t/kinds.sh
. /lab/t/gold.sh

mkdir new
kinds_up g type=pv tick=500 'cfg=vif = ["mac=00:16:3e:5a:5a:01,bridge=xenbr0"]'
# The disk that tapdisk or QEMU serves from a VHD becomes a base as well.
create g gold.xlsave --name gold --no-live -d xvdb,external -d xvdf,reflink
before=$(volumes vg0)
xl-snapshot revert gold.xlsave --as c --overlay-dir new --dry-run >plan.out
[[ -z $(ls new) && $(volumes vg0) == "$before" ]] || fail "a dry run made something"
xl-snapshot revert -v gold.xlsave --as c --overlay-dir new >c.out
went_on c gold.xlsave
grep -q 'is a new domain from snapshot gold of g' c.out || fail "$(<c.out)"
[[ -z $(identities | sort | uniq -d) ]] || fail "shared: $(identities)"
[[ $(lvs --noheadings -o lv_name vg0/thin.c | xargs) == thin.c ]] || fail "no thin volume"
more_ticks g 2
not_torn g

refused 3 'There is a domain c already' xl-snapshot revert gold.xlsave --as c --overlay-dir new
refused 3 'There is a domain Domain-0' xl-snapshot revert gold.xlsave --as Domain-0 --overlay-dir new
refused 2 'overlay-dir' xl-snapshot revert gold.xlsave --as d
refused 2 'all digits' xl-snapshot revert gold.xlsave --as 77 --overlay-dir new
refused 3 'mkdir -p' xl-snapshot revert gold.xlsave --as d --overlay-dir nowhere
xl destroy c
refused 3 'exists' xl-snapshot revert gold.xlsave --as c --overlay-dir new
mkdir keep
xl-snapshot revert -q gold.xlsave --as k --overlay-dir keep --keep-macs --paused --json >k.json
[[ $(json clone_of <k.json) == g && $(json paused <k.json) == true ]] || fail "$(<k.json)"
xl list -l k | grep -q '5a:5a:01' || fail "the address was not kept"
[[ $(xl list k | awk 'END {print $5}') == --p* ]] || fail "k is not paused"
xl unpause k
went_on k gold.xlsave
xl destroy k
revert g gold.xlsave
qemu_img_check_all
lvremove -qqy vg0/thin.c vg0/thin.k
xl destroy g
umount x
detail "a new domain with ${#kinds[@]} kinds of disk; the original runs on and was put back"
