/*
 * The VHD format, by Microsoft's "Virtual Hard Disk Image Format Specification" 1.0 (2006). What the
 * specification leaves open is as libvhd does it (github.com/xapi-project/blktap, vhd/lib).
 *
 *   0      copy of the footer     \
 *   512    dynamic header          | not in a fixed VHD
 *   1536   BAT                     | (block allocation table)
 *   ..     libvhd's batmap         |
 *   ..     parent locators         | only in a differencing one
 *   ..     blocks: bitmap, data   /
 *   end    footer
 */
#ifndef VHD_H
#define VHD_H

#include <limits.h>
#include <stdint.h>

#define SECTOR 512
#define BLOCK_BYTES (2 << 20)
#define BAT_UNUSED 0xffffffffu
#define LOCATORS 8

enum vhd_type { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

/* Both structures are in the byte order of the file, which is big-endian. */
struct vhd_footer {
	char cookie[8];
	uint32_t features;
	uint32_t version;
	uint64_t header_offset;
	uint32_t timestamp;
	char creator[4];
	uint32_t creator_version;
	uint32_t creator_os;
	uint64_t original_size;
	uint64_t size;
	uint16_t cylinders;
	uint8_t heads;
	uint8_t sectors;
	uint32_t type;
	uint32_t checksum;
	uint8_t uuid[16];
	uint8_t saved;
	uint8_t hidden; /* libvhd's own */
	uint8_t reserved[426];
} __attribute__((packed));

struct vhd_locator {
	uint32_t code;
	uint32_t space;
	uint32_t length;
	uint32_t reserved;
	uint64_t offset;
} __attribute__((packed));

struct vhd_header {
	char cookie[8];
	uint64_t next;
	uint64_t bat_offset;
	uint32_t version;
	uint32_t blocks;
	uint32_t block_bytes;
	uint32_t checksum;
	uint8_t parent_uuid[16];
	uint32_t parent_timestamp;
	uint32_t reserved;
	uint16_t parent_name[256];
	struct vhd_locator locators[LOCATORS];
	uint8_t reserved2[256];
} __attribute__((packed));

_Static_assert(sizeof(struct vhd_footer) == SECTOR, "footer");
_Static_assert(sizeof(struct vhd_header) == 2 * SECTOR, "header");

struct vhd {
	int fd;
	char path[PATH_MAX];
	struct vhd_footer footer;
	struct vhd_header header;
	enum vhd_type type;
	uint64_t size;
	uint64_t end; /* where the footer lies or, of an open leaf, the next block goes */
	uint32_t block_sectors;
	uint32_t bitmap_bytes;
	uint32_t blocks;
	uint32_t *bat;
	uint8_t *bitmap; /* of block bitmap_of */
	uint32_t bitmap_of;
	struct vhd *parent; /* if opened with its chain */
};

/* All functions that may fail return 0 or a negative errno. */

/* vhd.c */
int vhd_open(struct vhd **result, const char *path, int open_flags);
void vhd_close(struct vhd *v);
uint32_t vhd_checksum(const void *data, uint32_t bytes);
int vhd_pread(int fd, void *to, uint64_t bytes, uint64_t offset);
int vhd_pwrite(int fd, const void *from, uint64_t bytes, uint64_t offset);
int vhd_locator_name(const struct vhd *v, char to[PATH_MAX]);
int vhd_parent_path(const struct vhd *v, char to[PATH_MAX]);
int vhd_depth(const char *path);

/* create.c: size is in bytes; parent is NULL for a dynamic disk without one */
int vhd_create(const char *path, uint64_t size, const char *parent);

/* chain.c: the leaf for writing, the others read-only; sectors are of the leaf's disk */
int chain_open(struct vhd **result, const char *path);
int chain_close(struct vhd *leaf);
int chain_read(struct vhd *leaf, char *to, uint64_t sector, uint64_t count);
int chain_write(struct vhd *leaf, const char *from, uint64_t sector, uint64_t count);

/* tap-ctl.c */
int tap_ctl_main(int argc, char **argv);
int tapdisk_main(int argc, char **argv);

#endif
