/* SPDX-License-Identifier: MIT */
#ifndef PM_REPLACE_H
#define PM_REPLACE_H

#include "agent.h"

#include <time.h>

#define PM_FAILED_MAX ((PM_MESSAGE_MAX - sizeof(struct pm_header) - sizeof(struct pm_result)) / sizeof(struct pm_failed))

/* What a request has led to; its size is that of the largest PM_RESULT. */
struct pm_outcome {
	struct pm_header header;
	struct pm_result result;
	struct pm_failed failed[PM_FAILED_MAX];
};

struct pm_request {
	const struct pm_run *runs; /* PM_MERGE, checked by pm_message_check */
	uint32_t count;
	const int *fds; /* of the segments */
	uint32_t nfds;
	int tracker;	   /* the daemon's write-tracking userfaultfd, -1: none */
	uint32_t barrier;  /* enum pm_barrier: the ones that may be used */
	uint32_t freeze_max_usecs;
	bool give;   /* PM_GIVE */
	bool direct; /* pages may be written without a fault, by O_DIRECT reads under way */
	long vmas; /* mappings of this process */
};

enum { PM_STOP_USECS = 3000 }; /* for all threads to stop */

static inline uint64_t pm_clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Add pages that were left as they were, and why (enum pm_failure). */
void pm_fail(struct pm_outcome *outcome, uint64_t addr, uint32_t npages, uint32_t why);
/* Around what the daemon asks for: from what the program does between that it is told whether it is at work. */
void pm_request_begin(void);
void pm_request_end(bool stopped);
/* A program that is at work: it is to be stopped seldom, and for a short time. */
bool pm_is_delicate(void);
/* Stop the threads, none of them in the middle of a call that changes mappings: 0 or -errno. */
int pm_stop_threads(unsigned int timeout_usecs);
/* The same for pages that were looked at before: nothing has come about meanwhile by which they are written unseen. */
int pm_stop_to_commit(void);

void pm_merge(const struct pm_request *request, struct pm_outcome *outcome);
/* `held`: somebody else has taken hold of pages, which must stay where they are. */
void pm_unmerge(const struct pm_range *ranges, uint32_t count, bool held, struct pm_outcome *outcome);
void pm_zero(const struct pm_range *ranges, uint32_t count, struct pm_outcome *outcome);
/* Pool mappings in [start, end) become anonymous memory with their content; -EBUSY: only the pages have become the process's own, as others hold some of them. */
int pm_make_anonymous(uint64_t start, uint64_t end);

/* dump.c: before the first page is merged */
void pm_dump_merged(void);

#endif
