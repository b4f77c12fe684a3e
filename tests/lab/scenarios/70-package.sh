#!/bin/bash
# The Debian package: dpkg installs it, all it depends on is there, its program takes a snapshot and
# reverts to it, and its removal leaves the snapshot alone.
# timeout: 240
. /lab/t/lib.sh

deb=/lab/t/xl-snapshot.deb
[[ -f $deb ]] || fail "no package was pushed: make deb; tests/lab/lab install BINARY target/debian/*.deb"

# This dom0 leaves manuals and documentation out (build-base), unless told otherwise. A dependency that
# is missing fails here.
PATH=$PATH:/sbin:/bin dpkg --path-include='/usr/share/man/*' --path-include='/usr/share/doc/*' -i "$deb"
[[ $(dpkg-query -W -f='${db:Status-Abbrev}' xl-snapshot) == ii* ]] || fail "it is not installed"
changed=$(dpkg --verify xl-snapshot)
[[ -z $changed ]] || fail "not what is in the package: $changed"

# From here on the package's program, not the one that `lab install` put into /usr/local.
xl-snapshot() { /usr/sbin/xl-snapshot "$@"; }
version=$(dpkg-query -W -f='${Version}' xl-snapshot)
[[ $(xl-snapshot --version) == "xl-snapshot ${version%-*}" ]] || fail "version $(xl-snapshot --version)"
for command in create revert show; do
	xl-snapshot $command --help >help.out
	grep -q '^Examples:' help.out || fail "no examples in the help of $command"
done
for page in xl-snapshot.1 xl-snapshot-{create,revert,show}.1 xl-snapshot.toml.5 xl-snapshot-json.5; do
	gzip -dc "/usr/share/man/man${page##*.}/$page.gz" >page.out
	grep -q '^\.SH SYNOPSIS' page.out || fail "$page is no manual page"
done
[[ -s /usr/share/doc/xl-snapshot/copyright && -s /usr/share/doc/xl-snapshot/examples/web1.cfg ]]

qcow2 a.qcow2 32M
guest_up p tick=300 a.qcow2
wait_tick p 2

# The names of domains are asked of the real xl.
names=$(bash --norc -c '. /usr/share/bash-completion/completions/xl-snapshot
	COMP_WORDS=(xl-snapshot create "") COMP_CWORD=2
	_xl_snapshot xl-snapshot "" create
	echo "${COMPREPLY[*]}"')
[[ " $names " == *" p "* && $names != *Domain-0* ]] || fail "completed to: $names"

create p s1.xlsave --name s1
xl-snapshot show s1.xlsave >show.out
grep -q 'can be reverted to' show.out
revert p s1.xlsave
PATH=$PATH:/sbin:/bin dpkg --purge xl-snapshot
[[ ! -e /usr/sbin/xl-snapshot && -s s1.xlsave ]] || fail "the removal took too little, or too much"
xl destroy p
qemu_img_check_all
detail "$version: installed, used, removed"
