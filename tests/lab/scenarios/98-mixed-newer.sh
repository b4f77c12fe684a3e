#!/bin/bash
# On 4.20: the guests that 4.17 has saved go on, and are saved again; the one whose disk this QEMU cannot serve
# is refused before anything changes.
# mixed
# suite: trixie  (the second part of tests/lab/mixed)
. /lab/t/mixed.sh

for name in p h; do
	goes_on_from $name $name.xlsave
	create $name $name.new.xlsave --name s2 --no-live -d xvdb,external
	keep $name $name.new.xlsave
	# Back to the old one once more, now that a newer one rests on it.
	revert $name $name.new.xlsave
	xl destroy $name
	cell "internal and external" $name "4.17 on 4.20" ok
done
before=$(ls -l --time-style=full-iso; sha256sum v.vhd)
serves vpc && fail "this QEMU serves VHDs"
refused 3 'serves no vhd (vpc) images' xl-snapshot revert v.xlsave
xl-snapshot show v.xlsave >/tmp/show.out || :
grep -q 'serves no vhd' /tmp/show.out || fail "show does not tell: $(</tmp/show.out)"
[[ $before == "$(ls -l --time-style=full-iso; sha256sum v.vhd)" ]] || fail "a refusal changed something"
domid v && fail "there is a domain v"
leave
detail "what Xen 4.17 saved goes on on $(xl info xen_version); a VHD that QEMU does not serve is refused"
