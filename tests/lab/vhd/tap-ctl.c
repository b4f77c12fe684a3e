/*
 * tap-ctl and its daemon tapdisk. The real tapdisk serves a disk to the kernel by the module blktap; this
 * one by the module nbd, over a socket pair. (The interface: linux/drivers/block/nbd.c and
 * include/uapi/linux/nbd.h; the protocol: github.com/NetworkBlockDevice/nbd, doc/proto.md.)
 *
 *   tap-ctl check                   0: the module is there
 *   tap-ctl create -a vhd:FILE      prints the device, /dev/xen/blktap-2/tapdevN, the same as /dev/nbdN
 *                                   (as Xen's script block-tap calls it before 4.19)
 *   tap-ctl allocate                loads the module, and prints a device as above (from 4.19 on)
 *   tap-ctl spawn                   prints the PID of a daemon that serves nothing yet
 *   tap-ctl attach -p PID -m MINOR  0: both are there
 *   tap-ctl open -p PID -m MINOR -a vhd:FILE
 *                                   the daemon serves the file
 *   tap-ctl detach -p PID -m MINOR  ends a daemon that serves nothing
 *   tap-ctl free -m MINOR           takes allocate back
 *   tap-ctl list [-t TYPE] [-f FILE] [-p PID] [-m MINOR]
 *   tap-ctl destroy -p PID -m MINOR returns when the file is complete and the daemon is gone
 *
 * A daemon has a file /run/tapdisk/PID, "MINOR FILE"; one that serves nothing yet has a socket, PID.socket.
 * /run/tapdisk/minor.N is there while device N is allocated. Its child, which only waits in the kernel, is named
 * tapdisk-nbd, so that `pgrep -x tapdisk` counts disks.
 */
#define _GNU_SOURCE
#include "vhd.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN_DIR "/run/tapdisk"
#define DEV_DIR "/dev/xen/blktap-2"
#define MAX_DEVICES 256
#define PATIENCE_MS 30000

/* What the daemon tells tap-ctl create once the kernel has the socket. */
struct started {
	int err;
	int minor;
};

/* ---- the daemon */

static int receive(int sock, void *to, size_t bytes)
{
	ssize_t n;

	while (bytes) {
		n = read(sock, to, bytes);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EPIPE;
		to = (char *)to + n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int transmit(int sock, const void *from, size_t bytes)
{
	ssize_t n;

	while (bytes) {
		n = send(sock, from, bytes, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EPIPE;
		from = (const char *)from + n;
		bytes -= (size_t)n;
	}
	return 0;
}

/* Does one request; the length of what is to be sent back besides the reply is left in *answer. */
static int serve_one(int sock, struct vhd *leaf, uint32_t type, const struct nbd_request *request,
		     char **buffer, size_t *size, size_t *answer, int *err)
{
	uint64_t from = be64toh(request->from);
	size_t length = be32toh(request->len);

	*answer = 0;
	*err = 0;
	if (type == NBD_CMD_FLUSH) {
		*err = fdatasync(leaf->fd) ? EIO : 0;
		return 0;
	}
	if (type != NBD_CMD_READ && type != NBD_CMD_WRITE) {
		*err = EINVAL;
		return 0;
	}
	if (length > *size) {
		free(*buffer);
		*buffer = malloc(length);
		*size = *buffer ? length : 0;
		if (!*buffer)
			return -ENOMEM;
	}
	if (type == NBD_CMD_WRITE && receive(sock, *buffer, length))
		return -EPIPE;
	if (from % SECTOR || length % SECTOR || from + length > leaf->size)
		*err = EINVAL;
	else if (type == NBD_CMD_WRITE)
		*err = chain_write(leaf, *buffer, from / SECTOR, length / SECTOR) ? EIO : 0;
	else
		*err = chain_read(leaf, *buffer, from / SECTOR, length / SECTOR) ? EIO : 0;
	if (type == NBD_CMD_READ && !*err)
		*answer = length;
	return 0;
}

/* Something more came within a moment. */
static int more_requests(int sock)
{
	struct pollfd p = { .fd = sock, .events = POLLIN };

	return poll(&p, 1, 20) == 1;
}

/* Until the kernel disconnects; it may still have had requests on their way by then. */
static void serve(int sock, struct vhd *leaf)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct nbd_request request;
	size_t size = 0, answer;
	char *buffer = NULL;
	int disconnect = 0, err;
	uint32_t type;

	while (!disconnect || more_requests(sock)) {
		if (receive(sock, &request, sizeof(request)) ||
		    request.magic != htobe32(NBD_REQUEST_MAGIC))
			break;
		type = be32toh(request.type) & 0xffff; /* flags are above */
		if (type == NBD_CMD_DISC) {
			disconnect = 1;
			continue;
		}
		if (serve_one(sock, leaf, type, &request, &buffer, &size, &answer, &err))
			break;
		reply.error = htobe32((uint32_t)err);
		memcpy(&reply.handle, &request.handle, sizeof(reply.handle));
		if (transmit(sock, &reply, sizeof(reply)) || transmit(sock, buffer, answer))
			break;
	}
	free(buffer);
}

/*
 * Takes the device *minor, or if that is negative the first free one; its descriptor, or a negative errno. Never open one for writing: udev
 * watches for the close of such a descriptor, and then reads from a disk that is about to go.
 */
static int claim_device(int sock, uint64_t size, int *minor)
{
	char path[64];
	int fd, last = *minor < 0 ? MAX_DEVICES - 1 : *minor;

	for (*minor = *minor < 0 ? 0 : *minor; *minor <= last; ++*minor) {
		snprintf(path, sizeof(path), "/sys/block/nbd%d/pid", *minor);
		if (!access(path, F_OK))
			continue;
		snprintf(path, sizeof(path), "/dev/nbd%d", *minor);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 && errno == ENOENT)
			break;
		if (fd < 0)
			continue;
		/* EBUSY if somebody was faster, or has the device still open after its last use. */
		if (!ioctl(fd, NBD_SET_SOCK, (unsigned long)sock)) {
			if (!ioctl(fd, NBD_SET_BLKSIZE, (unsigned long)SECTOR) &&
			    !ioctl(fd, NBD_SET_SIZE_BLOCKS, (unsigned long)(size / SECTOR)) &&
			    !ioctl(fd, NBD_SET_FLAGS,
				   (unsigned long)(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH)))
				return fd;
			ioctl(fd, NBD_CLEAR_SOCK);
		}
		close(fd);
	}
	return -ENODEV;
}

/* The child that stays in the kernel while the device is in use. */
static pid_t lend_to_kernel(int device, int our_end)
{
	pid_t child = fork();

	if (child)
		return child;
	prctl(PR_SET_NAME, "tapdisk-nbd");
	/* Else it would keep the other end alive if the daemon is killed. */
	close(our_end);
	ioctl(device, NBD_DO_IT);
	/* Ends requests that came too late; else whoever made them would hang for ever, and so would we. */
	ioctl(device, NBD_CLEAR_SOCK);
	_exit(0);
}

static int note_down(const char *file, int minor)
{
	char path[64];
	FILE *note;

	mkdir(RUN_DIR, 0755);
	snprintf(path, sizeof(path), RUN_DIR "/%d", (int)getpid());
	note = fopen(path, "we");
	if (!note)
		return -errno;
	fprintf(note, "%d %s\n", minor, file);
	return fclose(note) ? -errno : 0;
}

static void forget(int pid)
{
	char path[64];

	snprintf(path, sizeof(path), RUN_DIR "/%d", pid);
	unlink(path);
}

static int run_disk(const char *file, int minor, int answer_fd)
{
	struct started started = { 0, minor };
	struct vhd *leaf = NULL;
	int ends[2], device = -1, err;
	pid_t child = -1;

	err = chain_open(&leaf, file);
	if (!err && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
		err = -errno;
	if (!err) {
		device = claim_device(ends[1], leaf->size, &started.minor);
		err = device < 0 ? device : note_down(file, started.minor);
	}
	if (!err) {
		child = lend_to_kernel(device, ends[0]);
		err = child < 0 ? -errno : 0;
	}
	/* The kernel and the child hold what they need. */
	if (device >= 0) {
		close(ends[1]);
		close(device);
	}
	started.err = err;
	if (write(answer_fd, &started, sizeof(started)) != sizeof(started) && !err)
		err = -EPIPE;
	close(answer_fd);
	if (child > 0) {
		serve(ends[0], leaf);
		close(ends[0]);
	}
	if (leaf && chain_close(leaf) && !err)
		err = -EIO;
	if (child > 0)
		waitpid(child, NULL, 0);
	forget((int)getpid());
	return err;
}

/* Waits at a socket for "MINOR FILE", for as long as block-tap may take. */
static int run_later(int listening)
{
	struct pollfd p = { .fd = listening, .events = POLLIN };
	char text[PATH_MAX + 16];
	int conn, minor, n = 0;
	ssize_t length;

	if (poll(&p, 1, PATIENCE_MS) != 1)
		return -ETIMEDOUT;
	conn = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	if (conn < 0)
		return -errno;
	close(listening);
	length = read(conn, text, sizeof(text) - 1);
	if (length <= 0)
		return -EPIPE;
	text[length] = '\0';
	if (sscanf(text, "%d %n", &minor, &n) != 1 || !n)
		return -EINVAL;
	return run_disk(text + n, minor, conn);
}

/*
 * tapdisk FILE: started by tap-ctl only, with the pipe for its answer as standard input; without FILE, with
 * the socket at which it is told.
 */
int tapdisk_main(int argc, char **argv)
{
	int null = open("/dev/null", O_RDWR), answer_fd;

	if (argc > 2 || null < 0)
		return -EINVAL;
	prctl(PR_SET_NAME, "tapdisk");
	/* Whoever started the hotplug script waits for the end of its output: keep nothing of it. */
	answer_fd = fcntl(0, F_DUPFD, 10);
	if (answer_fd < 0)
		return -errno;
	dup2(null, 0);
	dup2(null, 1);
	dup2(null, 2);
	dup2(answer_fd, 3);
	syscall(SYS_close_range, 4u, ~0u, 0u);
	fcntl(3, F_SETFD, FD_CLOEXEC);
	umask(022);
	return argc == 2 ? run_disk(argv[1], -1, 3) : run_later(3);
}

/* ---- tap-ctl */

static void pause_ms(int ms)
{
	poll(NULL, 0, ms);
}

/* The device has its size: only then may anyone open it. */
static int wait_ready(int minor)
{
	char path[64], text[32];
	int waited;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/nbd%d/size", minor);
	for (waited = 0; waited < PATIENCE_MS; waited += 10) {
		f = fopen(path, "re");
		if (!f)
			return -errno;
		if (!fgets(text, sizeof(text), f))
			text[0] = '\0';
		fclose(f);
		if (atoll(text) > 0)
			return 0;
		pause_ms(10);
	}
	return -ETIMEDOUT;
}

static int make_node(int minor, char *path, size_t size)
{
	char nbd[64];
	struct stat st;

	snprintf(nbd, sizeof(nbd), "/dev/nbd%d", minor);
	if (stat(nbd, &st))
		return -errno;
	mkdir("/dev/xen", 0755);
	mkdir(DEV_DIR, 0755);
	snprintf(path, size, DEV_DIR "/tapdev%d", minor);
	unlink(path);
	return mknod(path, S_IFBLK | 0600, st.st_rdev) ? -errno : 0;
}

static int create_disk(const char *target)
{
	struct started started = { -EIO, -1 };
	char path[64];
	int answer[2], err;
	pid_t child;

	if (strncmp(target, "vhd:/", 5))
		return -EINVAL;
	if (pipe2(answer, O_CLOEXEC))
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0) {
		setsid();
		if (chdir("/") || dup2(answer[1], 0) < 0)
			_exit(1);
		execl("/proc/self/exe", "tapdisk", target + 4, (char *)NULL);
		_exit(1);
	}
	close(answer[1]);
	if (read(answer[0], &started, sizeof(started)) != sizeof(started))
		started.err = -EIO;
	close(answer[0]);
	err = started.err;
	if (!err)
		err = wait_ready(started.minor);
	if (!err)
		err = make_node(started.minor, path, sizeof(path));
	if (!err)
		printf("%s\n", path);
	return err;
}

static void socket_path(int pid, struct sockaddr_un *at)
{
	memset(at, 0, sizeof(*at));
	at->sun_family = AF_UNIX;
	snprintf(at->sun_path, sizeof(at->sun_path), RUN_DIR "/%d.socket", pid);
}

static void free_minor(int minor)
{
	char path[64];

	snprintf(path, sizeof(path), RUN_DIR "/minor.%d", minor);
	unlink(path);
}

static int allocate(void)
{
	char *modprobe[] = { "modprobe", "blktap", NULL }, *none[] = { "PATH=/usr/sbin:/sbin", NULL };
	char path[64];
	int minor, fd, status;
	pid_t child;

	if (posix_spawn(&child, "/usr/sbin/modprobe", NULL, NULL, modprobe, none) ||
	    waitpid(child, &status, 0) != child || status)
		return -ENODEV;
	mkdir(RUN_DIR, 0755);
	for (minor = 0; minor < MAX_DEVICES; ++minor) {
		snprintf(path, sizeof(path), "/sys/block/nbd%d", minor);
		if (access(path, F_OK))
			break;
		snprintf(path, sizeof(path), "/sys/block/nbd%d/pid", minor);
		if (!access(path, F_OK))
			continue;
		snprintf(path, sizeof(path), RUN_DIR "/minor.%d", minor);
		fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
		if (fd < 0)
			continue;
		close(fd);
		printf(DEV_DIR "/tapdev%d\n", minor);
		return 0;
	}
	return -ENODEV;
}

static int spawn_daemon(void)
{
	struct sockaddr_un at;
	int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ready[2];
	pid_t child;
	char byte;

	if (listening < 0 || pipe2(ready, O_CLOEXEC))
		return -errno;
	mkdir(RUN_DIR, 0755);
	child = fork();
	if (child < 0)
		return -errno;
	if (child == 0) {
		setsid();
		socket_path((int)getpid(), &at);
		unlink(at.sun_path);
		if (bind(listening, (struct sockaddr *)&at, sizeof(at)) || listen(listening, 1) ||
		    chdir("/") || dup2(listening, 0) < 0 || write(ready[1], "", 1) != 1)
			_exit(1);
		execl("/proc/self/exe", "tapdisk", (char *)NULL);
		_exit(1);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		return -EIO;
	printf("%d\n", (int)child);
	return 0;
}

static int attach(int pid, int minor)
{
	struct sockaddr_un at;
	char path[64];

	socket_path(pid, &at);
	snprintf(path, sizeof(path), RUN_DIR "/minor.%d", minor);
	return access(at.sun_path, F_OK) || access(path, F_OK) ? -ENOENT : 0;
}

static int detach(int pid)
{
	struct sockaddr_un at;

	socket_path(pid, &at);
	return kill(pid, SIGKILL) || unlink(at.sun_path) ? -errno : 0;
}

static int open_disk(int pid, int minor, const char *target)
{
	struct started started = { -EIO, -1 };
	struct sockaddr_un at;
	char path[64];
	int conn = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), err;

	if (strncmp(target, "vhd:/", 5))
		return -EINVAL;
	socket_path(pid, &at);
	if (conn < 0 || connect(conn, (struct sockaddr *)&at, sizeof(at)) ||
	    dprintf(conn, "%d %s", minor, target + 4) < 0)
		return -errno;
	unlink(at.sun_path);
	if (read(conn, &started, sizeof(started)) != sizeof(started))
		started.err = -EIO;
	close(conn);
	err = started.err;
	if (!err)
		err = wait_ready(minor);
	return err ? err : make_node(minor, path, sizeof(path));
}

/* Reads a daemon's note, and removes the note of a daemon that was killed. */
static int read_note(int pid, int *minor, char file[PATH_MAX])
{
	char path[64], line[PATH_MAX + 16] = "", name[16] = "";
	FILE *f;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	f = fopen(path, "re");
	if (f) {
		if (fscanf(f, "%15s", name) != 1)
			name[0] = '\0';
		fclose(f);
	}
	if (strcmp(name, "tapdisk")) {
		forget(pid);
		return -ESRCH;
	}
	snprintf(path, sizeof(path), RUN_DIR "/%d", pid);
	f = fopen(path, "re");
	if (!f)
		return -ESRCH;
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	line[strcspn(line, "\n")] = '\0';
	if (sscanf(line, "%d %n", minor, &n) != 1 || !n)
		return -ESRCH;
	snprintf(file, PATH_MAX, "%.*s", PATH_MAX - 1, line + n);
	return 0;
}

/* One line a disk, in the words that block-tap looks for. */
static int list_disks(const char *type, const char *wanted, int only_pid, int only_minor)
{
	DIR *dir = opendir(RUN_DIR);
	char file[PATH_MAX];
	struct dirent *entry;
	int pid, minor;

	while (dir && (entry = readdir(dir))) {
		pid = atoi(entry->d_name);
		if (pid <= 0 || read_note(pid, &minor, file))
			continue;
		if ((type && strcmp(type, "vhd")) || (wanted && strcmp(wanted, file)) ||
		    (only_pid > 0 && pid != only_pid) || (only_minor >= 0 && minor != only_minor))
			continue;
		printf("pid=%d minor=%d state=0 args=vhd:%s\n", pid, minor, file);
	}
	if (dir)
		closedir(dir);
	return 0;
}

static int destroy_disk(int pid, int minor)
{
	struct pollfd daemon = { .events = POLLIN };
	char path[PATH_MAX];
	int noted, device, err;

	daemon.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (daemon.fd < 0)
		return -errno;
	err = read_note(pid, &noted, path);
	if (err)
		return err;
	if (noted != minor)
		return -ENOENT;
	snprintf(path, sizeof(path), "/dev/nbd%d", minor);
	device = open(path, O_RDONLY | O_CLOEXEC);
	if (device < 0)
		return -errno;
	/* What dom0 itself wrote through the page cache; a guest's writes do not pass through it. */
	fsync(device);
	err = ioctl(device, NBD_DISCONNECT) ? -errno : 0;
	close(device);
	if (!err && poll(&daemon, 1, PATIENCE_MS) != 1)
		err = -ETIMEDOUT;
	snprintf(path, sizeof(path), DEV_DIR "/tapdev%d", minor);
	unlink(path);
	free_minor(minor);
	return err;
}

static int dispatch(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "", *target = NULL, *type = NULL, *file = NULL;
	int pid = -1, minor = -1, c;

	optind = 2;
	while ((c = getopt(argc, argv, "a:t:f:p:m:")) != -1) {
		switch (c) {
		case 'a':
			target = optarg;
			break;
		case 't':
			type = optarg;
			break;
		case 'f':
			file = optarg;
			break;
		case 'p':
			pid = atoi(optarg);
			break;
		case 'm':
			minor = atoi(optarg);
			break;
		default:
			return -EINVAL;
		}
	}
	if (!strcmp(command, "check"))
		return access("/sys/block/nbd0", F_OK) ? -ENODEV : 0;
	if (!strcmp(command, "create") && target)
		return create_disk(target);
	if (!strcmp(command, "list"))
		return list_disks(type, file, pid, minor);
	if (!strcmp(command, "destroy") && pid > 0 && minor >= 0)
		return destroy_disk(pid, minor);
	if (!strcmp(command, "allocate"))
		return allocate();
	if (!strcmp(command, "spawn"))
		return spawn_daemon();
	if (!strcmp(command, "attach") && pid > 0 && minor >= 0)
		return attach(pid, minor);
	if (!strcmp(command, "open") && pid > 0 && minor >= 0 && target)
		return open_disk(pid, minor, target);
	if (!strcmp(command, "detach") && pid > 0)
		return detach(pid);
	if (!strcmp(command, "free") && minor >= 0) {
		free_minor(minor);
		return 0;
	}
	fprintf(stderr, "usage: tap-ctl COMMAND OPTION...\n");
	return -EINVAL;
}

int tap_ctl_main(int argc, char **argv)
{
	int err = dispatch(argc, argv);

	if (err)
		fprintf(stderr, "%s\n", strerror(-err));
	return err;
}
