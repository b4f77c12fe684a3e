#!/bin/bash
# For `make soak`: snapshots of a running guest are taken, gone back to, deleted and cloned at random. Whenever one is
# looked at, `list` calls those good that were taken and not deleted; at the end, each of them goes back to its moment,
# no image is damaged, and no file is left that `list --all` does not explain.
# timeout: 14400
# soak
. /lab/t/lib.sh
. /lab/t/restore-first.sh
. /lab/t/kept.sh

steps=${SOAK_ROUNDS:-40}
vg_up vg0 300M
lvcreate -qq -y --type thin-pool -n pool -L 128M vg0
lvcreate -qq -y -V 16M -n thin --thinpool pool vg0
qcow2 a.qcow2 64M
qcow2 b.qcow2 64M
guest_up g tick=300 mem=96 a.qcow2 b.qcow2 /dev/vg0/thin
wait_tick g 2

names=()
declare -A count=()

# try COMMAND...: it works, or is refused before it changes anything.
try() {
	local rc=0
	"$@" >try.out 2>try.err.out || rc=$?
	((rc == 0 || rc == 3)) || fail "step $step: exit $rc: $* ($(<try.err.out))"
	return $rc
}

any() { echo "${names[RANDOM % ${#names[@]}]}"; }
how() { ((RANDOM % 2)) && echo internal || echo external; }

for ((step = 1; step <= steps; step++)); do
	move=$((RANDOM % 10))
	((${#names[@]} > 1)) || move=0
	((${#names[@]} < 7)) || move=9
	mark g
	case $move in
	[0-3])
		what=create name=n$step
		# Inside of a file that others rest on, or beside it: as it comes.
		take $name -d "xvda,$(how)" -d "xvdb,$(how)"
		names+=("$name")
		;;
	[45])
		what=revert name=$(any)
		((RANDOM % 2)) && discard=(--discard-current) || discard=()
		if try xl-snapshot revert "g/$name" "${discard[@]}"; then
			went_back g "kept/g/$name.xlsave"
		else
			what="revert refused"
		fi
		;;
	6)
		what="revert restored first" name=$(any)
		mark g.restoring
		if try xl-snapshot revert --restore-first "g/$name"; then
			first_went_back "kept/g/$name.xlsave"
			nothing_between
		else
			what="revert restored first refused"
		fi
		;;
	7)
		what=clone name=$(any)
		if try xl-snapshot revert "g/$name" --as k --overlay-dir new; then
			lab_mark[k]=0
			more_ticks k 2 120
			not_torn k
			xl destroy k
			gone k
			lvs --noheadings -o lv_full_name -S 'lv_name=~k' vg0 | xargs -r lvremove -qqy
			rm -rf new/*
		else
			what="clone refused"
		fi
		;;
	*)
		what=delete name=$(any)
		((RANDOM % 3)) && flatten=() || flatten=(--flatten)
		if try xl-snapshot delete "g/$name" "${flatten[@]}"; then
			for i in "${!names[@]}"; do
				[[ ${names[i]} != "$name" ]] || unset "names[i]"
			done
			names=("${names[@]}")
		else
			what="delete refused"
		fi
		;;
	esac
	echo "step $step: $what $name: ${names[*]}" >&2
	count[$what]=$((${count[$what]-0} + 1))
	more_ticks g 2
	not_torn g
	good "${names[@]}"
done

for name in "${names[@]}"; do
	mark g
	xl-snapshot revert -q "g/$name" >back.out || fail "$name: no way back"
	went_back g "kept/g/$name.xlsave"
done
xl-snapshot list --all g >all.out
for file in *.qcow2 g-* ; do
	[[ ! -e $file || $file == [ab].qcow2 || $file == "$(basename "$(image_of g xvda)")" || $file == "$(basename "$(image_of g xvdb)")" ]] ||
		grep -qF "$file" all.out || grep -qF "$file" kept/g/*.xlsave 2>/dev/null || echo "$file" >>nobody.out
done
[[ ! -s nobody.out ]] || fail "not explained: $(xargs <nobody.out); $(<all.out)"
xl destroy g
gone g
qemu_img_check_all
lvm_check vg0
detail "$steps steps:$(for what in "${!count[@]}"; do printf ' %s %d,' "$what" "${count[$what]}"; done) ${#names[@]} left, each went back"
