/*
 * For `make bench`: when a domain does not run, seen from outside, and what libxl costs alone.
 *
 *   watch DOMID COMMAND...       while the command runs; one line of name=value, times in microseconds
 *   same-uuid DOMID COMMAND...   the same of whatever domain has the UUID of that one
 *   cost COMMAND...              the same without watching a domain
 *   bare DOMID live|still        libxl's suspend into a file and its resume, nothing else: the floor
 *
 * It asks Xen, past libxl, as often as sleeps of half a millisecond allow. A domain that is paused, shut down (a suspended
 * one is), dying or gone does not run. It knows nothing of the program it watches, and shares no code
 * with it. It is written in C because libxenctrl has no stable interface that could be bound to.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIBXL_API_VERSION 0x041300
#include <libxl.h>
#include <xenctrl.h>
#include <xentoollog.h>

#define INTERVAL_NS 500000
/* Memory and the end of the command are looked at once in so many looks at the domain. */
#define SELDOM 16
#define MOST_DOMAINS 64

static void die(const char *what)
{
	fprintf(stderr, "watch: %s: %s\n", what, strerror(errno));
	exit(125);
}

static long long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int runs(xc_interface *xc, uint32_t domid)
{
	const uint32_t not_running = XEN_DOMINF_dying | XEN_DOMINF_shutdown | XEN_DOMINF_paused;
	xc_domaininfo_t info;

	return xc_domain_getinfolist(xc, domid, 1, &info) == 1 && info.domain == domid &&
	       !(info.flags & not_running);
}

/* Whether one of the domains with that UUID runs. */
static int one_runs(xc_interface *xc, const xen_domain_handle_t uuid)
{
	const uint32_t not_running = XEN_DOMINF_dying | XEN_DOMINF_shutdown | XEN_DOMINF_paused;
	xc_domaininfo_t info[MOST_DOMAINS];
	int count = xc_domain_getinfolist(xc, 0, MOST_DOMAINS, info), i;

	for (i = 0; i < count; i++)
		if (!memcmp(info[i].handle, uuid, sizeof(xen_domain_handle_t)) && !(info[i].flags & not_running))
			return 1;
	return 0;
}

/* The most memory a process ever had, in KiB (proc_pid_status(5), VmHWM); 0 once it has ended. */
static long peak_kib(pid_t pid)
{
	char path[64], line[256];
	long peak = 0;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmHWM: %ld", &peak) == 1)
			break;
	if (status)
		fclose(status);
	return peak;
}

/* The processor time of a process that has ended and was not waited for, without its children's
 * (proc_pid_stat(5), utime and stime). */
static long long own_cpu_us(pid_t pid)
{
	unsigned long long user = 0, system = 0;
	char path[64], line[1024];
	const char *behind;
	FILE *stat;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	stat = fopen(path, "re");
	if (!stat || !fgets(line, sizeof(line), stat) || !(behind = strrchr(line, ')')) ||
	    sscanf(behind + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
		die(path);
	fclose(stat);
	return (long long)(user + system) * 1000000 / sysconf(_SC_CLK_TCK);
}

/* Domain 0 stands for none: what is not watched is not slowed down by it either. */
static int watch(uint32_t domid, int same_uuid, char **command)
{
	const struct timespec interval = { 0, domid ? INTERVAL_NS : SELDOM * INTERVAL_NS };
	const struct sched_param first = { .sched_priority = 1 };
	long long begin, last, now, since = 0, length, pause = 0, longest = 0, gap = 0, own, all, wall;
	int status, times = 0, stopped = 0, running;
	long polls = 0, peak = 0, seen;
	struct rusage usage;
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	siginfo_t end = { 0 };
	xc_domaininfo_t info;
	pid_t pid;

	if (!xc)
		die("libxenctrl");
	if (same_uuid && (xc_domain_getinfolist(xc, domid, 1, &info) != 1 || info.domain != domid))
		die("the domain");
	begin = last = now_us();
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		execvp(command[0], command);
		die(command[0]);
	}
	/* What it watches must not hold it up. */
	if (sched_setscheduler(0, SCHED_FIFO, &first))
		die("sched_setscheduler");
	do {
		running = !domid || (same_uuid ? one_runs(xc, info.handle) : runs(xc, domid));
		now = now_us();
		if (now - last > gap)
			gap = now - last;
		/* It happened between two looks: most likely in the middle. */
		if (running && stopped) {
			length = (last + now) / 2 - since;
			pause += length;
			if (length > longest)
				longest = length;
			times++;
		} else if (!running && !stopped) {
			since = (last + now) / 2;
		}
		stopped = !running;
		last = now;
		if (polls++ % SELDOM == 0 || !domid) {
			if ((seen = peak_kib(pid)) > peak)
				peak = seen;
			if (waitid(P_PID, (id_t)pid, &end, WEXITED | WNOHANG | WNOWAIT))
				die("waitid");
		}
		nanosleep(&interval, NULL);
	} while (!end.si_pid);
	wall = now_us() - begin;
	/* Once it is waited for, this is gone. */
	own = own_cpu_us(pid);
	waitpid(pid, &status, 0);
	getrusage(RUSAGE_CHILDREN, &usage);
	all = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
	      usage.ru_stime.tv_usec;
	if (stopped)
		fprintf(stderr, "watch: domain %u does not run at the end\n", domid);
	printf("wall=%lld pause=%lld longest=%lld times=%d gap=%lld polls=%ld own_cpu=%lld all_cpu=%lld "
	       "peak_kib=%ld\n",
	       wall, pause, longest, times, gap, polls, own, all, peak);
	xc_interface_close(xc);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}

static int bare(uint32_t domid, int live)
{
	xentoollog_logger *logger =
		(xentoollog_logger *)xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
	int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	libxl_ctx *ctx;
	int saved, resumed;

	if (fd < 0)
		die("a temporary file");
	if (!logger || libxl_ctx_alloc(&ctx, LIBXL_VERSION, 0, logger))
		die("libxl");
	saved = libxl_domain_suspend(ctx, domid, fd, live ? LIBXL_SUSPEND_LIVE : 0, NULL);
	/* Whatever became of the suspend. */
	resumed = libxl_domain_resume(ctx, domid, 1, NULL);
	libxl_ctx_free(ctx);
	return saved || resumed;
}

int main(int argc, char **argv)
{
	if (argc > 3 && !strcmp(argv[1], "watch"))
		return watch((uint32_t)strtoul(argv[2], NULL, 10), 0, argv + 3);
	if (argc > 3 && !strcmp(argv[1], "same-uuid"))
		return watch((uint32_t)strtoul(argv[2], NULL, 10), 1, argv + 3);
	if (argc > 2 && !strcmp(argv[1], "cost"))
		return watch(0, 0, argv + 2);
	if (argc == 4 && !strcmp(argv[1], "bare"))
		return bare((uint32_t)strtoul(argv[2], NULL, 10), !strcmp(argv[3], "live"));
	fprintf(stderr, "usage: %s watch DOMID COMMAND... | same-uuid DOMID COMMAND... | cost COMMAND... | bare DOMID live|still\n", argv[0]);
	return 125;
}
