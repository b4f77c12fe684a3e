#!/bin/bash
# For `make soak`: a guest under load is backed up every minute, quiesced by its real qemu-ga, for an hour (SOAK_ROUNDS
# minutes). Each backup boots, its disks are of one moment and need no repair. No tick of the guest is later than the
# freeze may last, the guest keeps its own images, and nothing piles up.
# timeout: 10800
# soak
. /lab/t/lib.sh
. /lab/t/quiesce.sh

rounds=${SOAK_ROUNDS:-60} limit=10
export XL_SNAPSHOT_DIR=$LAB_WORK/kept
mkdir -p kept to
agent_initramfs
for disk in a b; do
	mkfs.ext4 -F -q $disk.raw 32M
	qemu-img convert -f raw -O qcow2 $disk.raw $disk.qcow2
	rm $disk.raw
done
agent_cfg g "${agent_channels[@]}" "$agent_name,connection=socket,path=$agent_path-g.sock" -- \
	"format=qcow2,vdev=xvda,access=rw,target=$LAB_WORK/a.qcow2" \
	"format=qcow2,vdev=xvdb,access=rw,target=$LAB_WORK/b.qcow2"
agent_up g
more_ticks g 3
cp g.cfg before.out

found=() took=0
start=$SECONDS
mark g
for ((round = 1; round <= rounds; round++)); do
	while ((SECONDS < start + (round - 1) * 60)); do lab_pause 0.5; done
	from=$(tick g) begin=$SECONDS
	xl-snapshot backup g.cfg to --quiesce agent --freeze-timeout $limit --json >backup.json 2>errors.out ||
		fail "backup $round: exit $?: $(<errors.out)"
	((SECONDS - begin <= took)) || took=$((SECONDS - begin))
	to=$(tick g)
	made=$(json directory <backup.json)
	for disk in xvda xvdb; do clean "$made/$disk.qcow2" qcow2; done

	# It boots beside the guest, with neither its agent nor its name.
	agent_cfg k "${agent_channels[@]}" -- "format=qcow2,vdev=xvda,access=rw,target=$made/xvda.qcow2" \
		"format=qcow2,vdev=xvdb,access=rw,target=$made/xvdb.qcow2"
	mark k
	xl create -q k.cfg
	wait_line k '^TICK [0-9]' 120
	not_torn k
	moment=$(console k | sed -n 's/^BOOT .*found=\([0-9]*\).*/\1/p')
	((moment >= from && moment <= to)) || fail "backup $round is of tick $moment, not of $from to $to"
	found+=("$moment")
	xl destroy k
	gone k
	rm -rf "${made:?}"

	[[ $(image_of g xvda) == "$LAB_WORK/a.qcow2" && $(image_of g xvdb) == "$LAB_WORK/b.qcow2" ]] ||
		fail "backup $round: it runs on $(image_of g xvda), $(image_of g xvdb)"
	cmp g.cfg before.out || fail "backup $round: the configuration file is another one"
	[[ $(echo ./*.qcow2 ./g.cfg*) == './a.qcow2 ./b.qcow2 ./g.cfg' && -z $(ls -A to) ]] || fail "left: $(ls . to)"
	[[ ! -e kept/g.backup || -z $(ls -A kept/g.backup) ]] || fail "left: $(ls -A kept/g.backup)"
	echo "backup $round: tick $moment, $((SECONDS - begin)) s" >&2
done
more_ticks g 2
not_torn g
gap=$(longest_gap g)
[[ ${gap%.*} -lt $limit ]] || fail "a tick came after $gap s"
xl destroy g
gone g
qemu_img_check_all
detail "${#found[@]} backups, each booted; a backup took at most $took s; the longest time between two ticks: $gap s"
