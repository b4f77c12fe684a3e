#!/bin/bash
# The Debian package: dpkg installs it, all it depends on is there, its program takes a snapshot and
# reverts to it, and its removal leaves the snapshot alone.
# core
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
for command in create revert show list prune; do
	xl-snapshot $command --help >help.out
	grep -q '^Examples:' help.out || fail "no examples in the help of $command"
done
for page in xl-snapshot.1 xl-snapshot-{create,revert,show,list,prune}.1 xl-snapshot.toml.5 xl-snapshot-json.5; do
	gzip -dc "/usr/share/man/man${page##*.}/$page.gz" >page.out
	grep -q '^\.SH SYNOPSIS' page.out || fail "$page is no manual page"
done
# The units: complete, understood by systemd, and off.
units=/usr/lib/systemd/system
words=$(systemd-analyze verify --man=no xl-snapshot@p.service xl-snapshot@p.timer 2>&1 || :)
[[ $words != *xl-snapshot@* ]] || fail "systemd-analyze verify: $words"
[[ $(systemctl --root=/ is-enabled xl-snapshot@p.timer || :) == disabled ]] || fail "the timer is not off"
! grep -q @ <(sed 's/xl-snapshot@//g' $units/xl-snapshot@.service) || fail "a mark is left in the unit"
[[ $(dpkg-query -W -f='${Conffiles}' xl-snapshot) == *" /etc/default/xl-snapshot "* ]] || fail "no settings"

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

# What the service does, with its settings, which systemd splits at spaces.
run_unit() {
	local line words
	. /etc/default/xl-snapshot
	while read -r line; do
		line=${line//-- %I/-- p}
		read -r -a words <<<"$(eval "echo ${line#ExecStart=}")"
		XL_SNAPSHOT_DIR=$LAB_WORK/kept "${words[@]}" </dev/null
	done < <(grep '^ExecStart=' $units/xl-snapshot@.service)
}
run_unit
[[ $(ls kept/p) == snap-*.xlsave ]] || fail "kept: $(ls kept/p)"
more_ticks p 2

create p s1.xlsave --name s1
xl-snapshot show s1.xlsave >show.out
grep -q 'can be reverted to' show.out
revert p s1.xlsave
PATH=$PATH:/sbin:/bin dpkg --purge xl-snapshot
[[ ! -e /usr/sbin/xl-snapshot && ! -e /etc/default/xl-snapshot && ! -e $units/xl-snapshot@.timer && -s s1.xlsave ]] || fail "the removal took too little, or too much"
xl destroy p
qemu_img_check_all
detail "$version: installed, used, removed"
