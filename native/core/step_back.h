/* SPDX-License-Identifier: MIT */
/* A thread that works in the background lets others go first. */
#ifndef PM_STEP_BACK_H
#define PM_STEP_BACK_H

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PM_KSMD_NICE = 5 }; /* as the kernel gives its own */
enum { PM_SLICE_NS = 4000000 };

/*
 * The calling thread gets ksmd's nice value, or keeps a higher one.  `further`: and asks for a longer slice than others have (2.8 ms at most): whoever wakes up with a shorter one
 * need not wait for the end of ours (Linux 6.12 and later), for milliseconds, where all CPUs scan or merge.  It may cost a twentieth of the work.  Not much longer, as one that is kept
 * from running may wait that long, and a program with it.  A thread with a policy of its own keeps that.  0 or -errno.
 */
static inline int pm_step_back(bool further)
{
	struct { /* struct sched_attr, as of its first version: what a libc knows of it differs */
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period; /* ns */
	} attr = {0};

	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0))
		return -errno;
	if (attr.policy != SCHED_OTHER && attr.policy != SCHED_BATCH)
		return 0;
	attr.size = sizeof(attr);
	attr.flags = 0;
	attr.nice = attr.nice > PM_KSMD_NICE ? attr.nice : PM_KSMD_NICE;
	attr.runtime = further ? PM_SLICE_NS : 0;
	return syscall(SYS_sched_setattr, 0, &attr, 0) ? -errno : 0;
}

#endif
