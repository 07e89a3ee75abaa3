/* SPDX-License-Identifier: MIT */
#include "step_back.h"

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { KSMD_NICE = 5 }; /* as the kernel gives its own */
enum { SLICE_NS = 4000000 };
enum { WAY_NS = 100000 }; /* work between two yields: with the shortest some 2 % of it */

static bool far_back;
static uint64_t gave_way; /* ns */

int pm_step_back(bool further)
{
	struct { /* struct sched_attr, as of its first version: what a libc knows of it differs */
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period; /* ns */
	} attr = {0};

	far_back = further;
	if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0))
		return -errno;
	if (attr.policy != SCHED_OTHER && attr.policy != SCHED_BATCH)
		return 0;
	attr.size = sizeof(attr);
	attr.flags = 0;
	attr.nice = attr.nice > KSMD_NICE ? attr.nice : KSMD_NICE;
	attr.runtime = further ? SLICE_NS : 0;
	return syscall(SYS_sched_setattr, 0, &attr, 0) ? -errno : 0;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void pm_give_way(void)
{
	uint64_t now;

	if (!far_back)
		return;
	now = now_ns();
	if (now - gave_way < WAY_NS)
		return;
	sched_yield();
	gave_way = now_ns();
}
