/* SPDX-License-Identifier: MIT */
/* How a thread waits, and so how well it can be borrowed. */
#include "inject_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* signal(7): "Interruption of system calls and library functions by stop signals", and sigtimedwait(2). */
bool pm_ends_with_eintr(long number, const uint64_t args[6], bool *has_limit)
{
	switch (number) {
#ifdef SYS_epoll_wait
	case SYS_epoll_wait:
#endif
	case SYS_epoll_pwait: *has_limit = (int)args[3] >= 0; return true;
#ifdef SYS_epoll_pwait2
	case SYS_epoll_pwait2:
#endif
	case SYS_semtimedop: *has_limit = args[3] != 0; return true;
	case SYS_rt_sigtimedwait: *has_limit = args[2] != 0; return true;
	case SYS_semop: *has_limit = false; return true;
	default: return false;
	}
}

static bool read_text(pid_t pid, pid_t tid, const char *name, char *text, size_t size)
{
	char path[96];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)pid, (int)tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, text, size - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	return n > 0;
}

static bool loses_its_wait(pid_t pid, pid_t tid)
{
	unsigned long long args[6];
	uint64_t copy[6];
	bool has_limit;
	char text[256];
	long number;

	if (!read_text(pid, tid, "syscall", text, sizeof(text)) ||
	    sscanf(text, "%ld %llx %llx %llx %llx %llx %llx", &number, &args[0], &args[1], &args[2], &args[3], &args[4],
		   &args[5]) != 7)
		return false;
	for (int i = 0; i < 6; i++)
		copy[i] = args[i];
	return pm_ends_with_eintr(number, copy, &has_limit);
}

enum pm_wait pm_wait_of(pid_t pid, pid_t tid)
{
	char text[512], *end;

	if (!read_text(pid, tid, "stat", text, sizeof(text)))
		return PM_WAIT_DEAD;
	end = strrchr(text, ')');
	switch (end && end[1] ? end[2] : 0) {
	case 'Z':
	case 'X': return PM_WAIT_DEAD;
	case 'D': return PM_WAIT_UNINTERRUPTIBLE;
	case 'T':
	case 't': return PM_WAIT_STOPPED;
	case 'S': return loses_its_wait(pid, tid) ? PM_WAIT_TIMED : PM_WAIT_SLEEPS;
	default: return PM_WAIT_RUNS;
	}
}
