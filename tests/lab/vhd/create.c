/* Writes new VHDs, byte for byte where vhd-util would put things. */
#define _GNU_SOURCE
#include "vhd.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EPOCH 946684800 /* VHD time begins with the year 2000 */

static uint64_t padded(uint64_t bytes)
{
	return (bytes + SECTOR - 1) / SECTOR * SECTOR;
}

/* The algorithm of the specification's appendix; readers take the size from the footer. */
static void set_geometry(struct vhd_footer *f, uint64_t size)
{
	uint32_t sectors = 65535u * 16 * 255, per_track = 255, heads = 16, tracks;

	if (size / SECTOR < sectors)
		sectors = (uint32_t)(size / SECTOR);
	tracks = sectors / per_track;
	if (sectors < 65535u * 16 * 63) {
		per_track = 17;
		tracks = sectors / per_track;
		heads = (tracks + 1023) / 1024;
		if (heads < 4)
			heads = 4;
		if (tracks >= heads * 1024 || heads > 16) {
			per_track = 31;
			heads = 16;
			tracks = sectors / per_track;
		}
		if (tracks >= heads * 1024) {
			per_track = 63;
			heads = 16;
			tracks = sectors / per_track;
		}
	}
	f->cylinders = htobe16((uint16_t)(tracks / heads));
	f->heads = (uint8_t)heads;
	f->sectors = (uint8_t)per_track;
}

static int fill_footer(struct vhd_footer *f, uint64_t size, enum vhd_type type)
{
	memset(f, 0, sizeof(*f));
	memcpy(f->cookie, "conectix", 8);
	f->features = htobe32(2);
	f->version = htobe32(0x10000);
	f->header_offset = htobe64(SECTOR);
	f->timestamp = htobe32((uint32_t)(time(NULL) - EPOCH));
	/* With any other creator QEMU would take the size from the geometry, which is rounded. */
	memcpy(f->creator, "tap", 4);
	f->creator_version = htobe32(0x10003);
	f->original_size = htobe64(size);
	f->size = htobe64(size);
	set_geometry(f, size);
	f->type = htobe32(type);
	if (getrandom(f->uuid, sizeof(f->uuid), 0) != sizeof(f->uuid))
		return -EIO;
	f->uuid[6] = (f->uuid[6] & 0x0f) | 0x40;
	f->uuid[8] = (f->uuid[8] & 0x3f) | 0x80;
	f->checksum = vhd_checksum(f, sizeof(*f));
	return 0;
}

/* The way from a file to another one, both absolute: "./base.vhd", "../dir/base.vhd". */
static int relative_path(const char *from, const char *to, char *out, size_t size)
{
	size_t i, common = 0, len = 0;

	for (i = 0; from[i] && from[i] == to[i]; i++) {
		if (from[i] == '/')
			common = i + 1;
	}
	for (i = common; from[i]; i++) {
		if (from[i] == '/' && len < size)
			len += (size_t)snprintf(out + len, size - len, "../");
	}
	if (len < size)
		len += (size_t)snprintf(out + len, size - len, "%s%s", len ? "" : "./", to + common);
	if (len >= size)
		return -ENAMETOOLONG;
	for (i = 0; out[i]; i++) {
		if (out[i] & 0x80)
			return -EILSEQ; /* as vhd-util's conversion from ASCII fails */
	}
	return 0;
}

static int write_locator(int fd, struct vhd_locator *l, const char *code, const char *text,
			 uint32_t length, uint64_t *offset)
{
	int err = vhd_pwrite(fd, text, length, *offset);

	memcpy(&l->code, code, 4);
	/* In bytes, although the specification says sectors: so do Microsoft and libvhd. */
	l->space = htobe32((uint32_t)padded(length));
	l->length = htobe32(length);
	l->offset = htobe64(*offset);
	*offset += padded(length);
	return err;
}

/* Although W2ku is meant for an absolute path, vhd-util writes the relative one in all three. */
static int write_locators(int fd, const char *path, const char *parent, struct vhd_header *h,
			  uint64_t *offset)
{
	char child[PATH_MAX], relative[PATH_MAX], url[PATH_MAX + 8], dos[PATH_MAX + 8];
	char wide[2 * sizeof(dos)] = "";
	uint32_t i;
	int err;

	if (!realpath(path, child))
		return -errno;
	err = relative_path(child, parent, relative, sizeof(relative));
	if (err)
		return err;
	/* Windows wants a relative path to begin with ".\". */
	snprintf(dos, sizeof(dos), "%s%s", relative[1] == '/' ? "" : "./", relative);
	for (i = 0; dos[i]; i++)
		wide[2 * i] = dos[i] == '/' ? '\\' : dos[i];
	snprintf(url, sizeof(url), "file://%s", relative);
	err = write_locator(fd, &h->locators[0], "MacX", url, (uint32_t)strlen(url), offset);
	if (!err)
		err = write_locator(fd, &h->locators[1], "W2ku", wide, 2 * i, offset);
	if (!err)
		err = write_locator(fd, &h->locators[2], "W2ru", wide, 2 * i, offset);
	return err;
}

static int fill_parent(struct vhd_header *h, const char *path, uint64_t *size)
{
	const char *name = strrchr(path, '/') + 1;
	struct vhd *parent;
	struct stat st;
	int i, err;

	err = vhd_open(&parent, path, O_RDONLY);
	if (err)
		return err;
	*size = parent->size;
	memcpy(h->parent_uuid, parent->footer.uuid, sizeof(h->parent_uuid));
	vhd_close(parent);
	if (stat(path, &st))
		return -errno;
	h->parent_timestamp = htobe32((uint32_t)(st.st_mtime - EPOCH));
	for (i = 0; name[i]; i++)
		h->parent_name[i] = htobe16((uint8_t)name[i]);
	return 0;
}

/* libvhd's list of full blocks. All zero is always true; without it vhd-util check complains. */
static int write_batmap(int fd, uint32_t blocks, uint64_t *offset)
{
	uint64_t map_bytes = padded((blocks + 7) / 8);
	struct {
		char cookie[8];
		uint64_t offset;
		uint32_t sectors, version, checksum;
	} __attribute__((packed)) batmap = {
		"tdbatmap",
		htobe64(*offset + SECTOR),
		htobe32((uint32_t)(map_bytes / SECTOR)),
		htobe32(0x10002),
		~0u,
	};
	int err = vhd_pwrite(fd, &batmap, sizeof(batmap), *offset);

	*offset += SECTOR + map_bytes;
	return err;
}

static int write_all(int fd, const char *path, uint64_t size, const char *parent)
{
	struct vhd_footer footer;
	struct vhd_header header;
	uint64_t offset = SECTOR + sizeof(header);
	uint32_t blocks, unused = BAT_UNUSED, i;
	int err;

	memset(&header, 0, sizeof(header));
	err = parent ? fill_parent(&header, parent, &size) : 0;
	if (!err)
		err = fill_footer(&footer, size, parent ? VHD_DIFFERENCING : VHD_DYNAMIC);
	blocks = (uint32_t)((size + BLOCK_BYTES - 1) / BLOCK_BYTES);
	memcpy(header.cookie, "cxsparse", 8);
	header.next = ~0ull;
	header.bat_offset = htobe64(offset);
	header.version = htobe32(0x10000);
	header.blocks = htobe32(blocks);
	header.block_bytes = htobe32(BLOCK_BYTES);
	for (i = 0; i < blocks && !err; i++)
		err = vhd_pwrite(fd, &unused, sizeof(unused), offset + i * sizeof(unused));
	offset += padded(blocks * sizeof(unused));
	if (!err)
		err = write_batmap(fd, blocks, &offset);
	if (!err && parent)
		err = write_locators(fd, path, parent, &header, &offset);
	header.checksum = vhd_checksum(&header, sizeof(header));
	if (!err)
		err = vhd_pwrite(fd, &footer, sizeof(footer), 0);
	if (!err)
		err = vhd_pwrite(fd, &header, sizeof(header), SECTOR);
	if (!err)
		err = vhd_pwrite(fd, &footer, sizeof(footer), offset);
	if (!err && fsync(fd))
		err = -errno;
	return err;
}

/*
 * The file is made or emptied before the parent is looked at, and deleted after an error: that is how
 * the real one loses a file that is to be its own parent.
 */
int vhd_create(const char *path, uint64_t size, const char *parent)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int err;

	if (fd < 0) {
		err = -errno;
		fprintf(stderr, "%s: failed to create: %d\n", path, err);
		return err;
	}
	err = write_all(fd, path, size, parent);
	close(fd);
	if (err)
		unlink(path);
	return err;
}
