/*
 * A stand-in for vhd-util, tap-ctl and tapdisk, which Debian 12 does not have, so that the lab can run
 * a guest on a chain of differencing VHDs through xl's own /etc/xen/scripts/block-tap. One program; its
 * name says what it is to be. Commands, words and exit statuses are those of blktap's (of February 2026,
 * github.com/xapi-project/blktap); the files are real VHDs, see vhd.h. What differs:
 *
 *   - there is no kernel module blktap: tap-ctl serves the disk by the kernel's nbd, see tap-ctl.c;
 *   - vhd-util snapshot prints the content of /run/vhd-util.fail to stderr and exits with 5, having done
 *     nothing, if there is such a file (the callers pass on no environment);
 *   - no raw parents (snapshot -m), no resizing (-S), no `aio:` disks;
 *   - vhd-util check looks at footers, header, BAT and parent, but prints no dump of a bad file.
 *
 * Built on the host, static, because dom0 has no compiler:
 *
 *   gcc -static -O2 -Wall -Wextra -Werror -s -o vhd-util main.c create.c vhd.c chain.c tap-ctl.c
 *
 * and installed in dom0 as /usr/sbin/vhd-util with the link /usr/sbin/tap-ctl -> vhd-util, and with
 * /etc/modprobe.d/blktap.conf, which lets block-tap's `modprobe blktap` succeed by loading nbd:
 *
 *   alias blktap nbd
 *   options nbd nbds_max=8 max_part=0
 *
 * As with the real ones, a VHD that a tapdisk has open has no valid footer at its end, only the copy at 0:
 * vhd-util query and snapshot and QEMU accept that, vhd-util check and vhdiinfo do not.
 *
 * A disk is then: script=block-tap,vdev=xvda,access=rw,target=vhd:/path/to/leaf.vhd
 */
#define _GNU_SOURCE
#include "vhd.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAIL_FILE "/run/vhd-util.fail"

static int create_command(int argc, char **argv)
{
	const char *name = NULL;
	uint64_t size = 0;
	int c;

	while ((c = getopt(argc, argv, "n:s:")) != -1) {
		switch (c) {
		case 'n':
			name = optarg;
			break;
		case 's':
			size = strtoull(optarg, NULL, 10) << 20;
			break;
		default:
			return -EINVAL;
		}
	}
	if (!name || !size || optind != argc) {
		printf("options: <-n name> <-s size (MB)>\n");
		return -EINVAL;
	}
	/* The real one rounds up to whole blocks, too. */
	return vhd_create(name, (size + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES, NULL);
}

static int holds_data(const struct vhd *v)
{
	uint32_t i;

	for (i = 0; i < v->blocks; i++) {
		if (v->bat[i] != BAT_UNUSED)
			return 1;
	}
	return 0;
}

/* The parent itself or, if that holds no data of its own, the next one above it that does. */
static int skip_empty(char path[PATH_MAX])
{
	struct vhd *v;
	int err, skip;

	do {
		err = vhd_open(&v, path, O_RDONLY);
		if (err)
			return err;
		skip = v->type == VHD_DIFFERENCING && !holds_data(v);
		if (skip)
			err = vhd_parent_path(v, path);
		vhd_close(v);
	} while (skip && !err);
	return err;
}

static int shall_fail(void)
{
	char text[4096];
	int fd = open(FAIL_FILE, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	if (fd < 0)
		return 0;
	len = read(fd, text, sizeof(text));
	close(fd);
	if (len > 0)
		fprintf(stderr, "%.*s", (int)len, text);
	return 1;
}

static int snapshot_command(int argc, char **argv)
{
	const char *name = NULL, *parent = NULL;
	int limit = 0, even_if_empty = 0, depth, c, err;
	char path[PATH_MAX];

	if (shall_fail())
		return -EIO;
	while ((c = getopt(argc, argv, "n:p:l:e")) != -1) {
		switch (c) {
		case 'n':
			name = optarg;
			break;
		case 'p':
			parent = optarg;
			break;
		case 'l':
			limit = atoi(optarg);
			break;
		case 'e':
			even_if_empty = 1;
			break;
		default:
			return -EINVAL;
		}
	}
	if (!name || !parent || optind != argc) {
		printf("options: <-n name> <-p parent name> [-l snapshot depth limit] "
		       "[-e link to supplied parent name even if it's empty]\n");
		return -EINVAL;
	}
	if (!realpath(parent, path))
		return -errno;
	err = even_if_empty ? 0 : skip_empty(path);
	if (err)
		return err;
	if (limit) {
		depth = vhd_depth(path);
		if (depth < 0) {
			printf("error checking snapshot depth: %d\n", depth);
			return depth;
		}
		if (depth + 1 > limit) {
			printf("snapshot depth exceeded: current depth: %d, limit: %d\n", depth, limit);
			return -ENOSPC;
		}
	}
	return vhd_create(name, 0, path);
}

static int print_parent(const struct vhd *v, const char *name, int resolve)
{
	char path[PATH_MAX];
	int err;

	if (v->type != VHD_DIFFERENCING) {
		printf("%s has no parent\n", name);
		return 0;
	}
	err = resolve ? vhd_parent_path(v, path) : vhd_locator_name(v, path);
	printf("%s\n", err ? "query failed" : path);
	return err;
}

static int print_depth(const char *name)
{
	int depth = vhd_depth(name);

	if (depth < 0) {
		printf("error checking chain depth: %d\n", depth);
		return depth;
	}
	printf("chain depth: %d\n", depth);
	return 0;
}

static int query_command(int argc, char **argv)
{
	int size = 0, used = 0, parent = 0, fields = 0, depth = 0, resolve = 1, c, err = 0, err2 = 0;
	const char *name = NULL;
	struct vhd *v;

	while ((c = getopt(argc, argv, "n:vspfdu")) != -1) {
		switch (c) {
		case 'n':
			name = optarg;
			break;
		case 'v':
			size = 1;
			break;
		case 's':
			used = 1;
			break;
		case 'p':
			parent = 1;
			break;
		case 'f':
			fields = 1;
			break;
		case 'd':
			depth = 1;
			break;
		case 'u':
			resolve = 0;
			break;
		default:
			return -EINVAL;
		}
	}
	if (!name || optind != argc) {
		printf("options: <-n name> [-v print virtual size (in MB)] "
		       "[-s print physical utilization (bytes)] [-p print parent] "
		       "[-f print fields] [-d print chain depth] [-u don't resolve parent path]\n");
		return -EINVAL;
	}
	err = vhd_open(&v, name, O_RDONLY);
	if (err) {
		printf("error opening %s: %d\n", name, err);
		return err;
	}
	if (size)
		printf("%" PRIu64 "\n", v->size >> 20);
	if (used)
		printf("%" PRIu64 "\n", v->end + SECTOR);
	if (parent)
		err = print_parent(v, name, resolve);
	if (fields)
		printf("hidden: %d\n", v->footer.hidden);
	if (depth)
		err2 = print_depth(name);
	vhd_close(v);
	return err ? err : err2;
}

/* Every block lies behind the metadata, before the footer, and in no other block. */
static int check_bat(const struct vhd *v)
{
	uint64_t length = v->bitmap_bytes + (uint64_t)v->block_sectors * SECTOR, at, other;
	uint64_t lowest = be64toh(v->header.bat_offset) + (uint64_t)v->blocks * sizeof(*v->bat);
	uint32_t i, j;

	for (i = 0; i < v->blocks; i++) {
		if (v->bat[i] == BAT_UNUSED)
			continue;
		at = (uint64_t)be32toh(v->bat[i]) * SECTOR;
		if (at < lowest) {
			printf("block %u (offset 0x%" PRIx64 ") clobbers headers\n", i, at / SECTOR);
			return -EINVAL;
		}
		if (at + length > v->end) {
			printf("block %u (offset 0x%" PRIx64 ") clobbers footer\n", i, at / SECTOR);
			return -EINVAL;
		}
		for (j = 0; j < i; j++) {
			other = (uint64_t)be32toh(v->bat[j]) * SECTOR;
			if (v->bat[j] != BAT_UNUSED && at < other + length && other < at + length) {
				printf("block %u (offset 0x%" PRIx64 ") clobbers block %u\n", i,
				       at / SECTOR, j);
				return -EINVAL;
			}
		}
	}
	return 0;
}

static int check_footers(const struct vhd *v)
{
	struct vhd_footer last, first;
	int err = vhd_pread(v->fd, &last, sizeof(last), v->end);

	if (!err)
		err = vhd_pread(v->fd, &first, sizeof(first), 0);
	if (err)
		return err;
	if (memcmp(last.cookie, "conectix", 8)) {
		printf("primary footer invalid: invalid cookie\n");
		return -EINVAL;
	}
	if (memcmp(&last, &first, sizeof(last))) {
		printf("primary and backup footers do not match\n");
		return -EINVAL;
	}
	return 0;
}

/* Writes the path of the parent, or nothing if there is none. */
static int check_parent(const struct vhd *v, char path[PATH_MAX])
{
	struct vhd *parent;
	int err;

	path[0] = '\0';
	if (v->type != VHD_DIFFERENCING)
		return 0;
	err = vhd_parent_path(v, path);
	if (err) {
		printf("error resolving parent of %s: %d\n", v->path, err);
		return err;
	}
	err = vhd_open(&parent, path, O_RDONLY);
	if (err) {
		printf("invalid parent %s: error opening parent\n", path);
		return err;
	}
	if (memcmp(v->header.parent_uuid, parent->footer.uuid, sizeof(parent->footer.uuid))) {
		printf("invalid parent %s: invalid parent uuid\n", path);
		err = -EINVAL;
	}
	vhd_close(parent);
	return err;
}

static int check_one(const char *name, char parent[PATH_MAX])
{
	struct vhd *v;
	int err = vhd_open(&v, name, O_RDONLY);

	parent[0] = '\0';
	if (err) {
		printf("error opening %s\n", name);
		return err;
	}
	if (v->type != VHD_FIXED) {
		err = check_footers(v);
		if (!err)
			err = check_bat(v);
		if (!err)
			err = check_parent(v, parent);
		printf(err ? "%s appears invalid\n" : "%s is valid\n", name);
	}
	vhd_close(v);
	return err;
}

static int check_command(int argc, char **argv)
{
	char name[PATH_MAX] = "", parent[PATH_MAX];
	int parents = 0, c, err;

	while ((c = getopt(argc, argv, "n:p")) != -1) {
		if (c == '?')
			return -EINVAL;
		if (c == 'p')
			parents = 1;
		else
			snprintf(name, sizeof(name), "%s", optarg);
	}
	if (!name[0] || optind != argc) {
		printf("options: -n <file> [-p check parents]\n");
		return -EINVAL;
	}
	err = check_one(name, parent);
	while (!err && parents && parent[0]) {
		strcpy(name, parent);
		err = check_one(name, parent);
		if (err)
			printf("error checking parents: %d\n", err);
	}
	return err;
}

static int vhd_util_main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(int argc, char **argv);
	} commands[] = {
		{ "create", create_command },
		{ "snapshot", snapshot_command },
		{ "query", query_command },
		{ "check", check_command },
	};
	size_t i;

	for (i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	}
	fprintf(stderr, "usage: vhd-util create|snapshot|query|check OPTION...\n");
	return 0; /* so does the real one */
}

int main(int argc, char **argv)
{
	const char *slash = argc ? strrchr(argv[0], '/') : NULL;
	const char *name = slash ? slash + 1 : argc ? argv[0] : "";

	if (!strcmp(name, "tapdisk"))
		return -tapdisk_main(argc, argv);
	if (!strcmp(name, "tap-ctl"))
		return -tap_ctl_main(argc, argv);
	return -vhd_util_main(argc, argv);
}
