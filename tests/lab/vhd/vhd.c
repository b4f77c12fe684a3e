/* Opens VHDs of any type and finds their parents. */
#define _GNU_SOURCE
#include "vhd.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int vhd_pread(int fd, void *to, uint64_t bytes, uint64_t offset)
{
	ssize_t n;

	while (bytes) {
		n = pread(fd, to, bytes, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		/* libvhd gives EPIPE at the end of the file: hence the 32 of `snapshot -n X -p X`. */
		if (n == 0)
			return -EPIPE;
		to = (char *)to + n;
		bytes -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int vhd_pwrite(int fd, const void *from, uint64_t bytes, uint64_t offset)
{
	ssize_t n;

	while (bytes) {
		n = pwrite(fd, from, bytes, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		from = (const char *)from + n;
		bytes -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

/* The one's complement of the sum of all bytes; the field itself must be 0. */
uint32_t vhd_checksum(const void *data, uint32_t bytes)
{
	const uint8_t *byte = data;
	uint32_t sum = 0;

	while (bytes--)
		sum += *byte++;
	return htobe32(~sum);
}

static int read_footer(int fd, struct vhd_footer *footer, uint64_t offset)
{
	struct vhd_footer copy;
	int err = vhd_pread(fd, footer, sizeof(*footer), offset);

	if (err)
		return err;
	copy = *footer;
	copy.checksum = 0;
	if (memcmp(footer->cookie, "conectix", 8) ||
	    footer->checksum != vhd_checksum(&copy, sizeof(copy)))
		return -EIO;
	return 0;
}

static int read_header(struct vhd *v)
{
	struct vhd_header copy;
	uint64_t offset = be64toh(v->footer.header_offset);
	uint32_t block_bytes;
	int err = vhd_pread(v->fd, &v->header, sizeof(v->header), offset);

	if (err)
		return err;
	copy = v->header;
	copy.checksum = 0;
	block_bytes = be32toh(v->header.block_bytes);
	if (memcmp(v->header.cookie, "cxsparse", 8) ||
	    v->header.checksum != vhd_checksum(&copy, sizeof(copy)) ||
	    block_bytes < SECTOR || (block_bytes & (block_bytes - 1)))
		return -EINVAL;
	v->blocks = be32toh(v->header.blocks);
	v->block_sectors = block_bytes / SECTOR;
	v->bitmap_bytes = (v->block_sectors / 8 + SECTOR - 1) / SECTOR * SECTOR;
	v->bitmap_of = BAT_UNUSED;
	if (v->size > (uint64_t)v->blocks * block_bytes)
		return -EINVAL;
	v->bat = malloc((size_t)v->blocks * sizeof(*v->bat) + 1);
	v->bitmap = malloc(v->bitmap_bytes);
	if (!v->bat || !v->bitmap)
		return -ENOMEM;
	return vhd_pread(v->fd, v->bat, (uint64_t)v->blocks * sizeof(*v->bat),
			 be64toh(v->header.bat_offset));
}

static int read_metadata(struct vhd *v)
{
	struct stat st;
	int err;

	if (fstat(v->fd, &st))
		return -errno;
	if (st.st_size < SECTOR)
		return st.st_size ? -EIO : -EPIPE;
	v->end = ((uint64_t)st.st_size - 1) / SECTOR * SECTOR;
	/* The footer at the end is invalid as long as a tapdisk has the file open for writing. */
	err = read_footer(v->fd, &v->footer, v->end);
	if (err)
		err = read_footer(v->fd, &v->footer, 0);
	if (err)
		return err;
	v->size = be64toh(v->footer.size);
	v->type = be32toh(v->footer.type);
	switch (v->type) {
	case VHD_FIXED:
		return v->size <= v->end ? 0 : -EINVAL;
	case VHD_DYNAMIC:
	case VHD_DIFFERENCING:
		return read_header(v);
	}
	return -EINVAL;
}

/* open_flags: O_RDONLY or O_RDWR. The parent is not opened. */
int vhd_open(struct vhd **result, const char *path, int open_flags)
{
	struct vhd *v = calloc(1, sizeof(*v));
	int err;

	*result = NULL;
	if (!v)
		return -ENOMEM;
	v->fd = open(path, open_flags | O_CLOEXEC);
	if (v->fd < 0)
		err = -errno;
	else if (!realpath(path, v->path))
		err = -errno;
	else
		err = read_metadata(v);
	if (err)
		vhd_close(v);
	else
		*result = v;
	return err;
}

void vhd_close(struct vhd *v)
{
	if (!v)
		return;
	if (v->fd >= 0)
		close(v->fd);
	free(v->bat);
	free(v->bitmap);
	free(v);
}

/*
 * The parent's name as the first readable locator has it, e.g. "./base.vhd". "MACX" is a file URL in
 * UTF-8, the others are little-endian UTF-16 with backslashes.
 */
int vhd_locator_name(const struct vhd *v, char to[PATH_MAX])
{
	const struct vhd_locator *l;
	char raw[2 * PATH_MAX];
	uint32_t length, i;

	if (v->type != VHD_DIFFERENCING)
		return -EINVAL;
	for (l = v->header.locators; l < v->header.locators + LOCATORS; l++) {
		length = be32toh(l->length);
		if (!length || length >= sizeof(raw) - 2 ||
		    vhd_pread(v->fd, raw, length, be64toh(l->offset)))
			continue;
		if (!memcmp(&l->code, "MacX", 4) && length > 7 && length < PATH_MAX &&
		    !memcmp(raw, "file://", 7)) {
			memcpy(to, raw + 7, length - 7);
			to[length - 7] = '\0';
			return 0;
		}
		if (memcmp(&l->code, "W2ru", 4) && memcmp(&l->code, "W2ku", 4))
			continue;
		for (i = 0; i < length / 2; i++)
			to[i] = raw[2 * i] == '\\' ? '/' : raw[2 * i];
		to[i] = '\0';
		return 0;
	}
	return -EINVAL;
}

/* A relative name counts from the directory of the child. */
int vhd_parent_path(const struct vhd *v, char to[PATH_MAX])
{
	char name[PATH_MAX], joined[2 * PATH_MAX];
	int err = vhd_locator_name(v, name);

	if (err)
		return err;
	if (name[0] == '/')
		snprintf(joined, sizeof(joined), "%s", name);
	else
		snprintf(joined, sizeof(joined), "%.*s/%s", (int)(strrchr(v->path, '/') - v->path),
			 v->path, name);
	return realpath(joined, to) ? 0 : -errno;
}

/* How many files the chain has, or a negative errno. */
int vhd_depth(const char *path)
{
	char current[PATH_MAX];
	struct vhd *v;
	int depth = 0, more = 1, err;

	snprintf(current, sizeof(current), "%s", path);
	while (more) {
		err = vhd_open(&v, current, O_RDONLY);
		if (err)
			return err;
		depth++;
		more = v->type == VHD_DIFFERENCING;
		err = more ? vhd_parent_path(v, current) : 0;
		vhd_close(v);
		if (err)
			return err;
	}
	return depth;
}
