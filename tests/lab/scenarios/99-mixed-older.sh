#!/bin/bash
# Back on 4.17: what 4.20 has saved is refused before anything changes; what 4.17 has saved still goes on.
# mixed
# suite: bookworm  (the third part of tests/lab/mixed)
. /lab/t/mixed.sh

before=$(ls -l --time-style=full-iso; sha256sum ./*.qcow2)
for name in p h; do
	refused 3 'and the older Xen 4.17' xl-snapshot revert $name.new.xlsave
	xl-snapshot show $name.new.xlsave >/tmp/show.out || :
	grep -q 'and the older Xen 4.17' /tmp/show.out || fail "show does not tell: $(</tmp/show.out)"
	cell "internal and external" $name "4.20 on 4.17" refused
done
[[ $before == "$(ls -l --time-style=full-iso; sha256sum ./*.qcow2)" ]] || fail "a refusal changed something"
for name in p h v; do
	goes_on_from $name $name.xlsave
	xl destroy $name
done
leave
detail "what Xen 4.20 saved is refused, what 4.17 saved goes on"
