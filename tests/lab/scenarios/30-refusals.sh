#!/bin/bash
# Every refusal: before any change, with its exit code and a message that says what to do.
# core
. /lab/t/lib.sh

for disk in a b; do qcow2 $disk.qcow2 64M; done
guest_up g tick=300 a.qcow2 b.qcow2
wait_tick g 2
xl-snapshot create g --no-live --name s1 --memory s1.xlsave -d xvdb,external
more_ticks g 1
stand() { find . -type f ! -name '*.out' -printf '%p %m\n' | sort; xl list -l g; }
before=$(stand)

refused 3 'no domain "nobody"' xl-snapshot create nobody
refused 3 'no domain "4711"' xl-snapshot create 4711
refused 3 'Domain 0' xl-snapshot create 0
refused 3 'already has a snapshot "s1"' xl-snapshot create g --no-live --name s1 --memory x.xlsave -d xvdb,none
refused 3 's1.xlsave exists' xl-snapshot create g --no-live --name s2 --memory s1.xlsave
refused 3 'exists' xl-snapshot create g --no-live --name s2 --memory x.xlsave -d "xvdb,external,file=$LAB_WORK/b.qcow2"
refused 3 'g-xvdb.after-s1.qcow2 exists' xl-snapshot create g --no-live --name s1 --memory x.xlsave -d xvda,none -d xvdb,external
refused 3 '/no/such' xl-snapshot create g --no-live --name s2 --memory /no/such/x.xlsave
refused 3 '/no/such' xl-snapshot create g --no-live --name s2 --memory x.xlsave -d xvdb,external,file=/no/such/o.qcow2
# /run is a small tmpfs, smaller than the guest's memory.
mount -o remount,size=20M /run
refused 3 'MiB free' xl-snapshot create g --no-live --name s2 --memory /run/x.xlsave
mount -o remount,size=50% /run
for name in '' 123 a/b .. -x; do
	refused 2 'snapshot name' xl-snapshot create g --no-live --name="$name" --memory x.xlsave
done
refused 2 'has no disk xvdz' xl-snapshot create g --no-live --name s2 --memory x.xlsave -d xvdz,internal
refused 2 'not a way' xl-snapshot create g --no-live --name s2 --memory x.xlsave -d xvda,sideways
printf 'name = "s2"\nmemroy = "x.xlsave"\n' >wrong.toml
refused 2 'memroy' xl-snapshot create g wrong.toml
refused 2 'No such file' xl-snapshot create g missing.toml
refused 2 'unexpected argument' xl-snapshot create g --frobnicate

# Something else is going on with the domain.
xl pause g
refused 3 'is paused' xl-snapshot create g --no-live --name s2 --memory x.xlsave
xl unpause g

# The disk is gone, though QEMU still has it open.
mv a.qcow2 away
refused 3 'No such file' xl-snapshot create g --no-live --name s2 --memory x.xlsave
refused 3 'No such file' xl-snapshot revert s1.xlsave
mv away a.qcow2

# Images that are none.
head -c 1000000 s1.xlsave >cut.xlsave
refused 3 'truncated' xl-snapshot revert cut.xlsave
head -c 1000 s1.xlsave >shorter.xlsave
refused 3 'shorter.xlsave' xl-snapshot revert shorter.xlsave
cp s1.xlsave copy.xlsave.partial
refused 3 'never completed' xl-snapshot revert copy.xlsave.partial
refused 3 'not a save file' xl-snapshot revert g.cfg
refused 3 'No such file' xl-snapshot revert nothing.xlsave
rm -f cut.xlsave shorter.xlsave copy.xlsave.partial wrong.toml
[[ $before == "$(stand)" ]] || fail "a refusal changed something: $(diff <(echo "$before") <(stand))"

# A plain save file says nothing of the disks.
xl save -c g plain.xlsave
refused 3 'without a snapshot record' xl-snapshot revert plain.xlsave

# The base of an overlay is written to behind our back; content and time come back, and it is good
# again.
cp -a b.qcow2 saved
touch b.qcow2
refused 3 'was written to since' xl-snapshot revert s1.xlsave
touch -r saved b.qcow2
xl-snapshot revert s1.xlsave --dry-run

# Another domain has the name.
xl rename g other
qcow2 c.qcow2 64M
guest_up g c.qcow2 'cfg=on_poweroff = "preserve"'
refused 3 'belongs to another domain' xl-snapshot revert s1.xlsave
# And that one is shut down, but kept.
xl shutdown g
until xl list g | grep -q -- '---s--'; do lab_pause; done
refused 3 'is shut down' xl-snapshot create g --memory x.xlsave
xl destroy g
xl rename other g
not_torn g
[[ $(domid g) ]]
more_ticks g 2
detail "$(grep -c '^refused as it should be' "$LAB_LOGS/output.log") refusals, nothing changed by any"
