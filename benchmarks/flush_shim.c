/* LD_PRELOAD library: adds CLOISTER_FLUSH_DELAY_US (default 1000) to every real flush.
 *
 * The virtual disks of test machines acknowledge a flush in under 0.1 ms, which flatters designs that
 * commit once per transaction. This makes a flush cost what a cloud disk asks for.
 *
 * Real flushes are fsync and fdatasync. sync_file_range is not one (it starts write-back and waits for
 * no medium), so it is left alone. Writes to O_DSYNC descriptors are left alone too: Postgres uses them
 * only under wal_sync_method=open_(data)sync, and the wrapper refuses a server set to that.
 * The delay comes after the flush, sleeping: like a disk, it takes time and no processor.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

typedef int (*flush_function)(int);

static flush_function real_fsync, real_fdatasync;
static long delay_ns = 1000 * 1000L;

__attribute__((constructor)) static void load(void)
{
	const char *delay_us = getenv("CLOISTER_FLUSH_DELAY_US");

	if (delay_us != NULL)
		delay_ns = strtol(delay_us, NULL, 10) * 1000L;
	real_fsync = (flush_function) dlsym(RTLD_NEXT, "fsync");
	real_fdatasync = (flush_function) dlsym(RTLD_NEXT, "fdatasync");
	/* The default slack of 50 us would add 5 % to the delay. Inherited by forked backends. */
	prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
}

/* Sleeps to an absolute time, so that a signal (Postgres sends many) shortens nothing. */
static void delay(void)
{
	int saved_errno = errno;
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += delay_ns;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
	errno = saved_errno;
}

int fsync(int fd)
{
	int result = real_fsync(fd);

	delay();
	return result;
}

int fdatasync(int fd)
{
	int result = real_fdatasync(fd);

	delay();
	return result;
}
