#!/bin/bash
# The cfg by which a domain was named at a snapshot names, after each revert, what the guest runs on; all
# else in it stays. One that was moved, or is another's, hinders nothing, unless a SPEC.toml names it.
# slow
. /lab/t/lib.sh

qcow2 a.qcow2 32M
qcow2 b.qcow2 32M
guest_up g tick=300 a.qcow2 b.qcow2 $'cfg=# f\xfcr den Webserver: a comment in Latin-1, kept'
wait_tick g 2
lab_boot[s1.xlsave]=$(boot_id g) lab_from[s1.xlsave]=$(tick g)
xl-snapshot create g.cfg --name s1 --memory s1.xlsave --no-live -d xvda,external
lab_until[s1.xlsave]=$(($(tick g) + 1))
wait_tick g $((lab_until[s1.xlsave] + 3))
base=$(sha256sum a.qcow2)
cp g.cfg after-create.cfg

# names_what_runs: for each disk the file names what libxl does; xl itself reads it.
names_what_runs() {
	local vdev
	xl -N create g.cfg >parsed.out
	for vdev in xvda xvdb; do
		grep -q "\"pdev_path\": \"$(image_of g $vdev)\"" parsed.out || fail "g.cfg does not name $(image_of g $vdev)"
	done
}

mark g
xl-snapshot revert s1.xlsave --json >revert.json
went_back g s1.xlsave
names_what_runs
backup=$(echo g.cfg.bak-before-revert-*)
grep -q "\"backup\": \"$LAB_WORK/$backup\"" revert.json || fail "the report does not tell of $backup"
cmp after-create.cfg "$backup" || fail "the backup is not the file as it was"
diff after-create.cfg g.cfg >diff.out && fail "the file was not changed"
# The line of the disks, and nothing else in it but the overlay.
[[ $(grep -c '^[<>]' diff.out) == 2 ]] || fail "more than a line was changed: $(<diff.out)"
overlay=$(image_of g xvda)
cmp <(sed "s,$LAB_WORK/g-xvda.after-s1.qcow2,$overlay," after-create.cfg | tr -d ' ') <(tr -d ' ' <g.cfg) ||
	fail "not only the overlay was changed: $(<diff.out)"

# Moved away: the revert goes on, and says what to write.
mv g.cfg moved.cfg
mark g
xl-snapshot revert s1.xlsave >report.out
went_back g s1.xlsave
grep -q 'g.cfg was not rewritten:' report.out && grep -q 'No such file' report.out || fail "no reason: $(<report.out)"
grep -qF "'format=qcow2,vdev=xvda,access=rw,target=$(image_of g xvda)'" report.out || fail "no entry: $(<report.out)"
# Said to be elsewhere: it is made true there.
printf 'memory = "s1.xlsave"\nconfig = "moved.cfg"\n' >s1.toml
mark g
xl-snapshot revert s1.toml >report.out
went_back g s1.xlsave
grep -q "config .*moved.cfg names the new images" report.out || fail "nothing of the file: $(<report.out)"
# Another domain's: told, or refused if it is named.
id=$(domid g)
sed 's/^name = .*/name = "other"/' moved.cfg >g.cfg
printf 'memory = "s1.xlsave"\nconfig = "g.cfg"\n' >wrong.toml
refused 3 'configuration of other, not of g' xl-snapshot revert wrong.toml
[[ $(domid g) == "$id" ]] || fail "a refused revert destroyed the domain"
xl-snapshot revert s1.xlsave --dry-run >plan.out
grep -q 'will not be rewritten: It is the configuration of other' plan.out || fail "not told: $(<plan.out)"

# The file is good for a start on what the guest wrote since.
mv moved.cfg g.cfg
names_what_runs
more_ticks g 3
at=$(tick g)
xl destroy g
mark g
xl create -q g.cfg
wait_line g '^BOOT ' 90
more_ticks g 2
not_torn g
(($(tick g) >= at)) || fail "it came up elsewhere: tick $(tick g) after $at"
[[ $base == "$(sha256sum a.qcow2)" ]] || fail "the base was written to"
xl destroy g
qemu_img_check_all
detail "the file names what runs, byte for byte else"
