/* SPDX-License-Identifier: MIT */
/* A group: the runs that one mapping of the pool replaces.  Looked at, compared, and put in the place of the pages. */
#ifndef PM_GROUP_H
#define PM_GROUP_H

#include "replace.h"

enum {
	PM_GROUP_PAGES = 512,
	PM_SCATTER_GROUPS = 256,
};

struct pm_group {
	const struct pm_run *runs;
	uint32_t nruns, npages, copies, why;
	uint64_t start, end;
	int prot;
	uint32_t barrier; /* enum pm_barrier */
	bool tracked;  /* the kernel notes what is written after prepare */
	bool done;     /* replaced */
	bool give;     /* its pages are written to the segment first */
	bool in_place; /* mapped from just there already: private copies are dropped */
	char *aside;   /* the mapping that will take its place; NULL: the pool is mapped directly */
	uint64_t differs[PM_GROUP_PAGES / 64];
};

static inline uint64_t pm_bytes(uint64_t pages)
{
	return pages << PM_PAGE_SHIFT;
}

/* Read this process's own memory, which may not be there: 0 or -errno. */
int pm_read_self(void *to, uint64_t from, size_t length);
/* Map the request's segments, to compare with; 0 or -errno. */
int pm_views_map(const struct pm_request *request);
void pm_views_unmap(uint32_t n);
/* Whether the descriptors still are the segments that were mapped. */
bool pm_views_hold(const struct pm_request *request);

/* Cut the next group off the runs, at a place where no gap is when it gets long: how many runs it takes. */
uint32_t pm_group_take(const struct pm_run *runs, uint32_t count, uint32_t window, struct pm_group *group);
/* The whole of the group must be private memory of one protection that may be replaced: 0 or enum pm_failure. */
uint32_t pm_group_check(struct pm_group *group);
/* While mappings can't change: neighbours need not ask for the same one again. */
void pm_group_keep_mapping(bool on);
/* From now on the kernel notes what is written to a range; false where it can't. */
bool pm_range_track(int pagemap, uint64_t start, uint64_t end);
/*
 * Compare and build: 0 or enum pm_failure.  `direct`: nothing can take the memory away, so that it can be looked at in place.
 */
uint32_t pm_group_examine(struct pm_group *group, const int *fds, bool direct);
/* Map: 0 or enum pm_failure.  The threads are stopped, or nobody may write. */
uint32_t pm_group_commit(int pagemap, struct pm_group *group, const int *fds, bool stopped);
/* Report the merge pages of a group for which `differs` is set, or all of them. */
void pm_group_report(struct pm_outcome *outcome, const struct pm_group *group, bool all, uint32_t why);

/* The pool's pages of a group as mapped by pm_views_map; whether its merge pages equal them, looked at in place. */
const char *pm_group_view(const struct pm_group *group);
bool pm_group_equals(struct pm_group *group, const int *fds);

/* scatter.c: replace what can be of `n` small groups that lie close together; the rest is left as it is */
void pm_scatter(int pagemap, struct pm_group *first, uint32_t n, const struct pm_request *request, struct pm_outcome *outcome);
void pm_scatter_end(void);

#endif
