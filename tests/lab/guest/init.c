/*
 * The guest that notices a wrong revert: the only program of its initramfs.
 *
 * One number is kept in memory and, as text, at three places of every writable disk. Each second
 * the guest checks that all of them agree, then counts one up. If memory and disks are put back to
 * different moments they disagree, and the guest says TORN. The disks are used raw and past the
 * page cache: a file system or a cache would hide a mismatch. It is not a shell script because
 * under emulation one dd costs more than all of this does in a second.
 *
 * Memory may have been saved just between the check and the write, and then the write would wipe
 * out the evidence. So each number is also written to the next slot of a ring: the slot before must
 * hold the number before (else the disk is older than memory), and the slot after a number one
 * round older (else the disk is newer).
 *
 * Lines printed; dom0 keeps the console in /var/log/xen/console/guest-NAME.log:
 *   BOOT boot=ID found=N disks=xvda,xvdb    once; ID is new for each boot, N what the disks hold
 *   TICK N boot=ID disks=xvda,xvdb torn=N   once a second; torn counts the TORN lines of this boot
 *   TORN disk=xvda offset=N expected=N found=N
 *   MIXED low=N high=N   at boot only: half of a step is on the disks, as a power cut may leave it
 *   STOP poweroff|reboot
 *
 * Words on the kernel command line: tick_ms=N (default 1000), dirty_mb=N, with which it writes to so
 * many MiB of its memory a second (and a hundredth of that to its first disk) while it waits, and
 * blind, which turns the check off: with it a scenario shows that the lab notices a guest which
 * notices nothing.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DIGITS 16
#define BLOCK 4096
#define PLACES 3
#define RING 16
#define UNREADABLE (-1)
/* The memory and the part of the first disk that a busy guest writes to; no number is kept there. */
#define BUSY_MEMORY (64 << 20)
#define BUSY_DISK_START (1 << 20)
#define BUSY_DISK_END (2 << 20)
#define SLICE_MS 10

struct disk {
	char name[8];
	int fd;
	off_t offset[PLACES];
};

static struct disk disks[26];
static int disk_count;
static int torn;
static volatile sig_atomic_t stop;
static char block[BLOCK] __attribute__((aligned(BLOCK)));

/* One write per line, so that lines never mix with those of the kernel. */
static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (len > 0 && write(1, line, (size_t)len) < 0)
		return;
}

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void pause_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	/* A signal ends the pause early: it says that we shall stop. */
	nanosleep(&t, NULL);
}

/* Waits, and writes to memory and disk meanwhile: in slices, so that it is as good as even. */
static void work_ms(long ms, long dirty_mb)
{
	static char *busy, buffer[BLOCK] __attribute__((aligned(BLOCK)));
	static size_t at;
	static off_t disk_at = BUSY_DISK_START;
	static long owed;
	long end = now_ms() + ms, last = now_ms(), now, passed;

	/* Only now: a guest of 96 MiB could not even start a program that asks for so much. */
	if (!busy && !(busy = malloc(BUSY_MEMORY))) {
		say("ERROR no memory to be busy with\n");
		return;
	}
	for (; !stop && (now = now_ms()) < end; last = now) {
		/* Of a time in which it stood still it makes up nothing. */
		passed = now - last < 100 ? now - last : 100;
		/* In pages of memory, a hundredth of which also to the disk. */
		for (owed += passed * dirty_mb * 256; owed >= 1000; owed -= 1000) {
			busy[at]++;
			at = (at + BLOCK) % BUSY_MEMORY;
			if (disk_count && at / BLOCK % 100 == 0) {
				if (pwrite(disks[0].fd, buffer, BLOCK, disk_at) != BLOCK)
					say("ERROR write %s: %s\n", disks[0].name, strerror(errno));
				disk_at += BLOCK;
				if (disk_at == BUSY_DISK_END)
					disk_at = BUSY_DISK_START;
			}
		}
		pause_ms(SLICE_MS);
	}
}

/* The first line of a small file. */
static int read_line(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	to[0] = '\0';
	if (fd < 0)
		return -1;
	len = read(fd, to, size - 1);
	close(fd);
	if (len < 0)
		return -1;
	to[len] = '\0';
	to[strcspn(to, "\n")] = '\0';
	return 0;
}

static void load_modules(void)
{
	FILE *list = fopen("/modules/list", "re");
	char name[128], path[160];
	int fd;

	while (list && fgets(name, sizeof(name), list)) {
		name[strcspn(name, "\n")] = '\0';
		snprintf(path, sizeof(path), "/modules/%s", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			say("ERROR module %s: %s\n", name, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (list)
		fclose(list);
}

/* Every disk that xenbus knows of has connected. */
static int disks_settled(int *seen)
{
	DIR *bus = opendir("/sys/bus/xen/devices");
	char path[300], state[32];
	struct dirent *entry;
	int settled = 1;

	*seen = 0;
	while (bus && (entry = readdir(bus))) {
		if (strncmp(entry->d_name, "vbd-", 4))
			continue;
		*seen = 1;
		snprintf(path, sizeof(path), "/sys/bus/xen/devices/%s/state", entry->d_name);
		if (read_line(path, state, sizeof(state)) || strcmp(state, "Connected"))
			settled = 0;
	}
	if (bus)
		closedir(bus);
	return settled;
}

static void find_disks(void)
{
	char path[64], text[32], letter;
	int tries, seen;
	struct disk *d;
	off_t size;

	/* With no disk at all go on after 3 s, with one that does not connect after 20 s. */
	for (tries = 0; tries < 200; tries++) {
		if (disks_settled(&seen) && (seen || tries >= 30))
			break;
		pause_ms(100);
	}
	for (letter = 'a'; letter <= 'z'; letter++) {
		d = &disks[disk_count];
		snprintf(d->name, sizeof(d->name), "xvd%c", letter);
		snprintf(path, sizeof(path), "/sys/block/%s/ro", d->name);
		if (read_line(path, text, sizeof(text)) || strcmp(text, "0"))
			continue;
		snprintf(path, sizeof(path), "/sys/block/%s/size", d->name);
		if (read_line(path, text, sizeof(text)))
			continue;
		size = strtoll(text, NULL, 10) * 512 / BLOCK * BLOCK;
		if (size < 4 * RING * BLOCK)
			continue;
		d->offset[0] = 0;
		d->offset[1] = size / 2 / BLOCK * BLOCK;
		d->offset[2] = size - 2 * BLOCK;
		snprintf(path, sizeof(path), "/dev/%s", d->name);
		d->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
		if (d->fd < 0)
			say("ERROR open %s: %s\n", path, strerror(errno));
		else
			disk_count++;
	}
}

static off_t slot(int64_t n)
{
	return BLOCK * (1 + n % RING);
}

/* The number at an offset of a disk; 0 if nothing was ever written there. */
static int64_t number_at(const struct disk *d, off_t offset)
{
	char text[DIGITS + 1];

	if (pread(d->fd, block, BLOCK, offset) != BLOCK) {
		say("ERROR read %s: %s\n", d->name, strerror(errno));
		return UNREADABLE;
	}
	memcpy(text, block, DIGITS);
	text[DIGITS] = '\0';
	if (text[0] == '\0')
		return 0;
	if (strspn(text, "0123456789") != DIGITS)
		return UNREADABLE;
	return strtoll(text, NULL, 10);
}

static void check_one(const struct disk *d, off_t offset, int64_t expected)
{
	int64_t found = number_at(d, offset);

	if (found == expected)
		return;
	torn++;
	say("TORN disk=%s offset=%lld expected=%" PRId64 " found=%" PRId64 "\n", d->name,
	    (long long)offset, expected, found);
}

/* All that must be true on the disks after step n; first is the first step of this boot. */
static void check(int64_t n, int64_t first)
{
	int i, place;

	for (i = 0; i < disk_count; i++) {
		for (place = 0; place < PLACES; place++)
			check_one(&disks[i], disks[i].offset[place], n);
		if (n > first)
			check_one(&disks[i], slot(n - 1), n - 1);
		check_one(&disks[i], slot(n + 1), n + 1 < RING ? 0 : n + 1 - RING);
	}
}

static void write_block(const struct disk *d, off_t offset)
{
	if (pwrite(d->fd, block, BLOCK, offset) != BLOCK)
		say("ERROR write %s: %s\n", d->name, strerror(errno));
}

/* The slots come last: after a power cut the highest number is in a place, never in a slot only. */
static void write_number(int64_t n)
{
	int i, place;

	memset(block, 0, BLOCK);
	snprintf(block, BLOCK, "%0*" PRId64 "\n", DIGITS, n);
	for (i = 0; i < disk_count; i++) {
		for (place = 0; place < PLACES; place++)
			write_block(&disks[i], disks[i].offset[place]);
	}
	for (i = 0; i < disk_count; i++)
		write_block(&disks[i], slot(n));
	for (i = 0; i < disk_count; i++) {
		if (fsync(disks[i].fd))
			say("ERROR fsync %s: %s\n", disks[i].name, strerror(errno));
	}
}

/*
 * The number that the disks hold at boot: the highest one. A power cut in the middle of a step
 * leaves some places one behind; anything else is torn.
 */
static int64_t number_at_boot(void)
{
	int64_t low = INT64_MAX, high = 0, n;
	int i, place;

	for (i = 0; i < disk_count; i++) {
		for (place = 0; place < PLACES; place++) {
			n = number_at(&disks[i], disks[i].offset[place]);
			if (n < low)
				low = n;
			if (n > high)
				high = n;
		}
	}
	if (disk_count && low == high - 1 && low >= 0)
		say("MIXED low=%" PRId64 " high=%" PRId64 "\n", low, high);
	else
		check(high, high);
	return high;
}

static void on_signal(int number)
{
	stop = number == SIGUSR1 ? RB_POWER_OFF : RB_AUTOBOOT;
}

/*
 * /sbin/poweroff and /sbin/reboot, which the kernel runs for `xl shutdown` and `xl reboot`.
 * The first process does it, between two steps; should it hang, do it from here.
 */
static int ask_to_stop(int how)
{
	kill(1, how == RB_POWER_OFF ? SIGUSR1 : SIGUSR2);
	sleep(20);
	return reboot(how);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	char boot[64], cmdline[1024], names[26 * 5 + 1] = "";
	const char *word;
	long tick_ms = 1000, dirty_mb = 0;
	int i, blind;
	int64_t n, first;

	if (argc > 0 && strstr(argv[0], "poweroff"))
		return ask_to_stop(RB_POWER_OFF);
	if (argc > 0 && strstr(argv[0], "reboot"))
		return ask_to_stop(RB_AUTOBOOT);

	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR2, &action, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	load_modules();
	read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));
	read_line("/proc/cmdline", cmdline, sizeof(cmdline));
	if ((word = strstr(cmdline, "tick_ms=")))
		tick_ms = strtol(word + strlen("tick_ms="), NULL, 10);
	if ((word = strstr(cmdline, "dirty_mb=")))
		dirty_mb = strtol(word + strlen("dirty_mb="), NULL, 10);
	blind = strstr(cmdline, "blind") != NULL;
	find_disks();
	for (i = 0; i < disk_count; i++) {
		strcat(names, i ? "," : "");
		strcat(names, disks[i].name);
	}

	n = number_at_boot();
	say("BOOT boot=%s found=%" PRId64 " disks=%s\n", boot, n, names);
	write_number(n);
	first = n;
	for (;;) {
		say("TICK %" PRId64 " boot=%s disks=%s torn=%d\n", n, boot, names, torn);
		if (!stop && dirty_mb)
			work_ms(tick_ms, dirty_mb);
		else if (!stop)
			pause_ms(tick_ms);
		if (stop) {
			say("STOP %s\n", stop == (sig_atomic_t)RB_POWER_OFF ? "poweroff" : "reboot");
			reboot(stop);
		}
		if (!blind)
			check(n, first);
		n++;
		write_number(n);
	}
}
