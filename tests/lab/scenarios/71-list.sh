#!/bin/bash
# list: what descends from what and what the domain goes on from, for internal, external, mixed and thin
# snapshots, after reverts, a reboot and a restart, of a clone, of copied and renamed files; names, damage.
# slow
. /lab/t/lib.sh
. /lab/t/gold.sh

export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept/g kept/t new

# derived DOMAIN: on one line NAME<PARENT:HOW of each of its snapshots, the oldest first, and then what the domain
# goes on from, *NAME:HOW. All of them must be good, and show must say the same.
derived() {
	xl-snapshot list --json "$1" >list.json
	python3 - <<'END'
import json
found = json.load(open("list.json"))
names = {snapshot["id"]: snapshot["name"] for snapshot in found["snapshots"]}
name = lambda id: names.get(id, "elsewhere") if id else "-"
words = ["%s<%s:%s" % (s["name"], name(s["parent"]), s["parent_by"]) for s in found["snapshots"]]
words += ["!%s" % s["name"] for s in found["snapshots"] if s["state"] != "good"]
for domain in found["domains"]:
    words.append("*%s:%s" % (name(domain["id"] or domain["clone_of"]), domain["told"]))
print(" ".join(words))
END
}

# derives DOMAIN WORDS: just that is derived.
derives() {
	local found
	found=$(derived "$1")
	[[ $found == "$2" ]] || fail "derived: $found; expected: $2"
}

# take DOMAIN NAME ARGUMENT...: a snapshot in the directory of snapshots.
take() {
	local domain=$1 name=$2
	shift 2
	create "$domain" "kept/$domain/$name.xlsave" --name "$name" --no-live "$@"
}

# ---- internal: a b c d, back to b, e

qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
# A start from the configuration gives it the same UUID again: revert finds it by that.
guest_up g tick=300 mem=96 a.qcow2 b.qcow2 'cfg=uuid = "5a5a5a5a-0000-4000-8000-000000000071"' \
	'cfg=vif = ["mac=00:16:3e:5a:5a:07,bridge=xenbr0"]'
wait_tick g 2
[[ -z $(derived g | grep '<') ]] || fail "there are snapshots already"
take g a
derives g 'a<-:none *a:mark'
take g b
take g c
take g d
derives g 'a<-:none b<a:mark c<b:mark d<c:mark *d:mark'
revert g kept/g/b.xlsave
derives g 'a<-:none b<a:mark c<b:mark d<c:mark *b:mark'
take g e
line='a<-:none b<a:mark c<b:mark d<c:mark e<b:mark'
derives g "$line *e:mark"
xl-snapshot list --tree g >tree.out
sed 's/  20.*//' tree.out >names.out
printf '%s\n' g '`-  a' '   `-  b' '      |-  c' '      |  `-  d' '      `-* e' >expected.out
cmp names.out expected.out || fail "the tree: $(<tree.out)"
# A revert that is refused leaves the mark.
mv b.qcow2 away.qcow2
expect_exit 3 xl-snapshot revert kept/g/a.xlsave
mv away.qcow2 b.qcow2
derives g "$line *e:mark"

# ---- a reboot, and a restart

boot=$(boot_id g)
mark g
xl reboot g
wait_line g '^BOOT ' 90
more_ticks g 2
[[ $(boot_id g) != "$boot" ]] || fail "it did not reboot"
derives g "$line *e:mark"
xl destroy g
gone g
derives g "$line"
mark g
xl create -q g.cfg
wait_line g '^BOOT ' 90
more_ticks g 2
not_torn g
derives g "$line *e:mark"

# ---- external on internal, mixed, back

take g f -d xvda,external -d xvdb,external
line+=' f<e:mark'
derives g "$line *f:disks"
take g h -d xvdb,external
line+=' h<f:disks'
derives g "$line *h:disks"
revert g kept/g/f.xlsave
derives g "$line *f:disks"
take g i
line+=' i<f:disks'
derives g "$line *i:mark"
revert g kept/g/h.xlsave
derives g "$line *h:disks"
for name in a b c d e f h i; do
	[[ $(xl-snapshot show "g/$name" --json | json revertible) == true ]] || fail "show and list do not agree on $name"
done

# ---- names: of a file that was renamed, of copies, of twins

mv kept/g/b.xlsave kept/g/renamed.xlsave
cp kept/g/c.xlsave kept/copy.xlsave
ln kept/g/d.xlsave kept/g/link.xlsave
derives g "$line *h:disks"
xl-snapshot list --all >all.out
for word in "copy: \"c\"" "copy: \"d\"" "kept: \"before-revert-"; do
	grep -qF "$word" all.out || fail "no $word: $(<all.out)"
done
# The files of the disks are bases now: what is put back is a copy, which has the mark.
lab_from[g/b]=${lab_from[kept/g/b.xlsave]} lab_until[g/b]=${lab_until[kept/g/b.xlsave]}
lab_boot[g/b]=${lab_boot[kept/g/b.xlsave]}
revert g g/b
derives g "$line *b:mark"
take g j
line+=' j<b:mark'
derives g "$line *j:mark"
refused 3 'has no snapshot none of g' xl-snapshot revert g/none
refused 3 'xl-snapshot list g' xl-snapshot show g/none
[[ $(xl-snapshot show g/c --json | json image) == "$XL_SNAPSHOT_DIR/g/c.xlsave" ]] || fail "not the usual file first"

# ---- a clone

xl-snapshot revert -q g/f --as k --overlay-dir new >k.out
more_ticks k 2 120
not_torn k
xl-snapshot list >table.out
grep -q '^k is a clone of g/f$' table.out || fail "no word of the clone: $(<table.out)"
derives g "$line *j:mark"
mkdir -p kept/k
xl-snapshot create -q k --name of-a-clone --no-live >of-a-clone.out
xl-snapshot list --tree k >tree.out
grep -q '^`-\* of-a-clone ' tree.out || fail "not the clone's own: $(<tree.out)"
xl-snapshot list --tree >tree.out
grep -q 'of-a-clone .* from g/f$' tree.out || fail "not from where it is: $(<tree.out)"
xl destroy k

# ---- thin volumes

vg_up vg0 300M
lvcreate -qq -y --type thin-pool -n pool -L 128M vg0
lvcreate -qq -y -V 32M -n thin --thinpool pool vg0
guest_up t tick=300 mem=96 /dev/vg0/thin
wait_tick t 2
take t s1
take t s2
revert t kept/t/s1.xlsave
derives t 's1<-:none s2<s1:disks *s1:disks'
take t s3
derives t 's1<-:none s2<s1:disks s3<s1:disks *s3:disks'
lvremove -qq -y vg0/thin.s2
xl-snapshot list t >table.out
grep -q 'xvda: its snapshot vg0/thin.s2 no longer exists' table.out || fail "$(<table.out)"
xl destroy t

# ---- what does not belong there, and numbers for Prometheus

mkfifo kept/g/fifo.xlsave
ln -s /dev/zero kept/g/zero.xlsave
head -c 5000 kept/g/a.xlsave >kept/g/cut.xlsave
truncate -s -1 kept/g/c.xlsave
timeout 20 xl-snapshot list g >table.out || fail "it waits for what is no file"
grep -q '^damaged: .*/kept/g/fifo.xlsave' table.out || fail "$(<table.out)"
# Of c there is a whole copy.
derives g "$line *j:mark"
xl-snapshot list --metrics >metrics.out
grep -q '^xl_snapshot_count{domain="g"} 9$' metrics.out || fail "$(<metrics.out)"
grep -q '^xl_snapshot_broken{domain="t"} 1$' metrics.out || fail "$(<metrics.out)"
more_ticks g 2
not_torn g
xl destroy g
qemu_img_check_all
detail "$(wc -w <<<"$line") snapshots of three kinds in one tree, reverted to in any order; thin volumes, a clone, names"
