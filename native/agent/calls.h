/* SPDX-License-Identifier: MIT */
#ifndef PM_CALLS_H
#define PM_CALLS_H

#include "agent.h"

long pm_calls_mergeable(uint64_t start, size_t length, bool on);
long pm_calls_merge_any(bool on);
void pm_calls_asked(const struct pm_range *range); /* these two: by the daemon, in the agent's thread, which holds the replacing lock */
void pm_calls_asked_all(bool on);
long pm_calls_seal(uint64_t start, uint64_t end, bool on);
void pm_calls_exclude(uint64_t start, uint64_t end);
void pm_calls_note_merged(uint64_t start, uint64_t end);

/* remap.c: mremap(2) of [start, end), which may be several mappings, in the agent's thread */
struct pm_remap {
	uint64_t start, end, size, target; /* the size is of whole pages */
	int flags;
	bool pool;   /* some of it is mapped from the pool */
	long result; /* where it is now, or -errno */
};
void pm_remap(void *argument);

#endif
