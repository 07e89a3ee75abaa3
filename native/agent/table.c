/* SPDX-License-Identifier: MIT */
/*
 * A descriptor table for the agent's thread alone.
 *
 * What it opens, the program can neither see nor close nor inherit to a child; no number is taken that the program counts on, and none of its limit.
 */
#include "agent.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { CLOSE_RANGE_UNSHARE_ = 2 };

static _Atomic bool own;

static int close_other(const char *name, void *dir)
{
	int fd = atoi(name);

	if (name[0] >= '0' && name[0] <= '9' && fd != *(int *)dir)
		close(fd);
	return 0;
}

/* Before Linux 5.9: for a moment the program's descriptors are ours, too. */
static bool separate_slowly(void)
{
	int dir;

	if (unshare(CLONE_FILES))
		return false;
	dir = open("/proc/thread-self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return false; /* what is open in it would stay open behind the program's back; but it is gone with this thread */
	pm_dir_each(dir, close_other, &dir);
	close(dir);
	return true;
}

bool pm_table_separate(void)
{
	bool done = syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_UNSHARE_) == 0 || separate_slowly();

	atomic_store(&own, done);
	for (int fd = 0; done && fd <= 2;) /* nothing of ours under the numbers that libraries print to */
		fd = open("/dev/null", O_RDWR | O_CLOEXEC) < 0 ? 3 : fd + 1;
	return done;
}

bool pm_table_is_own(void)
{
	return atomic_load(&own);
}

void pm_table_forked(void)
{
	atomic_store(&own, false);
}
