/* Reads and writes the disk that a chain of VHDs holds. */
#define _GNU_SOURCE
#include "vhd.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* While the real tapdisk has the leaf open, its last sector is this, and only the copy at 0 is valid. */
static int spoil_footer(const struct vhd *v)
{
	char sector[SECTOR];

	memset(sector, 0xc7, sizeof(sector));
	return v->type == VHD_FIXED ? 0 : vhd_pwrite(v->fd, sector, sizeof(sector), v->end);
}

static void close_all(struct vhd *v)
{
	struct vhd *parent;

	for (; v; v = parent) {
		parent = v->parent;
		vhd_close(v);
	}
}

int chain_open(struct vhd **result, const char *path)
{
	char parent[PATH_MAX];
	struct vhd *leaf, *v;
	int err = vhd_open(&leaf, path, O_RDWR);

	*result = NULL;
	for (v = leaf; !err && v->type == VHD_DIFFERENCING; v = v->parent) {
		err = vhd_parent_path(v, parent);
		if (!err)
			err = vhd_open(&v->parent, parent, O_RDONLY);
		if (!err && memcmp(v->header.parent_uuid, v->parent->footer.uuid, 16))
			err = -EINVAL;
		if (err)
			break;
	}
	if (!err)
		err = spoil_footer(leaf);
	if (err)
		close_all(leaf);
	else
		*result = leaf;
	return err;
}

/* Makes the leaf complete again; returns after all is on the disk. */
int chain_close(struct vhd *leaf)
{
	int err = 0;

	if (leaf->type != VHD_FIXED)
		err = vhd_pwrite(leaf->fd, &leaf->footer, SECTOR, leaf->end);
	if (fsync(leaf->fd) && !err)
		err = -errno;
	close_all(leaf);
	return err;
}

static uint64_t block_offset(const struct vhd *v, uint32_t block)
{
	return (uint64_t)be32toh(v->bat[block]) * SECTOR;
}

static int load_bitmap(struct vhd *v, uint32_t block)
{
	int err;

	if (v->bitmap_of == block)
		return 0;
	err = vhd_pread(v->fd, v->bitmap, v->bitmap_bytes, block_offset(v, block));
	v->bitmap_of = err ? BAT_UNUSED : block;
	return err;
}

/* The first sector of a block is the highest bit of the first byte. */
static int present(const struct vhd *v, uint32_t sector)
{
	return v->bitmap[sector / 8] >> (7 - sector % 8) & 1;
}

/* What a file says nothing of is in its parent, or zero; a parent may be smaller. */
static int read_below(struct vhd *v, char *to, uint64_t sector, uint64_t count)
{
	uint64_t end = v->parent ? v->parent->size / SECTOR : 0, n = 0;

	if (sector < end)
		n = count < end - sector ? count : end - sector;
	memset(to + n * SECTOR, 0, (count - n) * SECTOR);
	return n ? chain_read(v->parent, to, sector, n) : 0;
}

/* A part of one block. */
static int read_block(struct vhd *v, char *to, uint64_t sector, uint32_t count)
{
	uint32_t block = (uint32_t)(sector / v->block_sectors), n;
	uint32_t first = (uint32_t)(sector % v->block_sectors);
	int err;

	if (v->bat[block] == BAT_UNUSED)
		return read_below(v, to, sector, count);
	err = load_bitmap(v, block);
	for (; count && !err; count -= n) {
		for (n = 1; n < count && present(v, first + n) == present(v, first); n++)
			;
		if (present(v, first))
			err = vhd_pread(v->fd, to, (uint64_t)n * SECTOR,
					block_offset(v, block) + v->bitmap_bytes +
						(uint64_t)first * SECTOR);
		else
			err = read_below(v, to, sector, n);
		to += (uint64_t)n * SECTOR;
		first += n;
		sector += n;
	}
	return err;
}

/* How many of the sectors from here on are in the same block. */
static uint32_t in_block(const struct vhd *v, uint64_t sector, uint64_t count)
{
	uint32_t left = v->block_sectors - (uint32_t)(sector % v->block_sectors);

	return count < left ? (uint32_t)count : left;
}

int chain_read(struct vhd *v, char *to, uint64_t sector, uint64_t count)
{
	uint32_t n;
	int err = 0;

	if (v->type == VHD_FIXED)
		return vhd_pread(v->fd, to, count * SECTOR, sector * SECTOR);
	for (; count && !err; count -= n) {
		n = in_block(v, sector, count);
		err = read_block(v, to, sector, n);
		to += (uint64_t)n * SECTOR;
		sector += n;
	}
	return err;
}

/*
 * A new block goes where the footer was. The BAT names it only when it is there with an empty bitmap,
 * so that a daemon killed at any point leaves a valid file.
 */
static int allocate(struct vhd *v, uint32_t block)
{
	uint64_t start = v->end;
	uint32_t place = htobe32((uint32_t)(start / SECTOR));
	int err;

	memset(v->bitmap, 0, v->bitmap_bytes);
	v->bitmap_of = BAT_UNUSED;
	err = vhd_pwrite(v->fd, v->bitmap, v->bitmap_bytes, start);
	if (err)
		return err;
	/* The data are a hole of zeroes. */
	v->end = start + v->bitmap_bytes + (uint64_t)v->block_sectors * SECTOR;
	err = spoil_footer(v);
	if (!err)
		err = vhd_pwrite(v->fd, &place, sizeof(place),
				 be64toh(v->header.bat_offset) + (uint64_t)block * sizeof(place));
	if (err)
		return err;
	v->bat[block] = place;
	v->bitmap_of = block;
	return 0;
}

/* A part of one block. The bitmap is written after the data of which it speaks. */
static int write_block(struct vhd *v, const char *from, uint64_t sector, uint32_t count)
{
	uint32_t block = (uint32_t)(sector / v->block_sectors), i;
	uint32_t first = (uint32_t)(sector % v->block_sectors);
	int changed = 0, err;

	err = v->bat[block] == BAT_UNUSED ? allocate(v, block) : load_bitmap(v, block);
	if (!err)
		err = vhd_pwrite(v->fd, from, (uint64_t)count * SECTOR,
				 block_offset(v, block) + v->bitmap_bytes + (uint64_t)first * SECTOR);
	if (err)
		return err;
	for (i = first; i < first + count; i++) {
		changed |= !present(v, i);
		v->bitmap[i / 8] |= (uint8_t)(0x80 >> i % 8);
	}
	if (changed)
		err = vhd_pwrite(v->fd, v->bitmap, v->bitmap_bytes, block_offset(v, block));
	if (err)
		v->bitmap_of = BAT_UNUSED;
	return err;
}

int chain_write(struct vhd *v, const char *from, uint64_t sector, uint64_t count)
{
	uint32_t n;
	int err = 0;

	if (v->type == VHD_FIXED)
		return vhd_pwrite(v->fd, from, count * SECTOR, sector * SECTOR);
	for (; count && !err; count -= n) {
		n = in_block(v, sector, count);
		err = write_block(v, from, sector, n);
		from += (uint64_t)n * SECTOR;
		sector += n;
	}
	return err;
}
