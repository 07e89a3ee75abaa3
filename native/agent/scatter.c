/* SPDX-License-Identifier: MIT */
/*
 * Many small groups close together: one stop for all of them.
 *
 * Mapping a page over another costs the kernel twice what mapping it into a hole does.  So, with the threads stopped, the pages are unmapped in as few pieces as
 * there are, and the pool's mapped into the holes.  Nobody looks at the holes meanwhile: the threads wait in the kernel, and the memory that
 * the kernel itself writes for a waiting thread is left out.
 */
#include "calls.h"
#include "group.h"
#include "marks.h"
#include "refusal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { READY_SPANS = 256, RESCUE_TURNS = 1000, GAPS_MAX = 64 };

static bool ready[PM_SCATTER_GROUPS];
static char gaps[GAPS_MAX * PM_PAGE_SIZE] __attribute__((aligned(4096))); /* pages that stay private, while there is no memory of theirs */

/* The groups from `i` on that are ready and adjoin: the one after them. */
static uint32_t span(const struct pm_group *first, uint32_t i, uint32_t n)
{
	while (++i < n && ready[i] && first[i].start == first[i - 1].end)
		;
	return i;
}

static uint32_t count_gaps(const struct pm_group *group)
{
	uint32_t count = 0;

	for (uint32_t r = 0; r < group->nruns; r++)
		count += group->runs[r].flags & PM_RUN_GAP ? group->runs[r].npages : 0;
	return count;
}

/*
 * Those that may be replaced, and equal the pool's pages: how many.  Writes are tracked since the daemon's look at them, so that what is not written when the threads are stopped
 * is what was compared.
 */
static uint32_t choose(struct pm_group *first, uint32_t n, const struct pm_request *request)
{
	uint32_t count = 0, copies = 0;

	pm_group_keep_mapping(true);
	for (uint32_t i = 0; i < n; i++) {
		struct pm_group *group = &first[i];

		ready[i] = pm_marks_wanted(group->start, group->end) && !pm_group_check(group) && !group->in_place &&
			   group->prot & PROT_READ && !pm_marks_sealed(group->start, group->end);
		if (ready[i] && group->nruns > 1) {
			ready[i] = group->prot & PROT_WRITE && copies + count_gaps(group) <= GAPS_MAX;
			copies += ready[i] ? count_gaps(group) : 0;
		}
	}
	pm_group_keep_mapping(false);
	for (uint32_t i = 0, k; i < n; i = k) {
		uint64_t start = first[i].start, end;

		k = ready[i] ? span(first, i, n) : i + 1;
		if (!ready[i])
			continue;
		end = first[k - 1].end;
		pm_calls_note_merged(start, end);
		for (uint32_t at = i; at < k; at++) {
			ready[at] = pm_group_equals(&first[at], request->fds);
			count += ready[at];
		}
	}
	return count;
}

/* Leave out what was written since `choose`, and the stacks of the stopped threads. */
static void leave_written(int pagemap, const struct pm_group *first, uint32_t n)
{
	static struct pm_page_region clean[READY_SPANS];
	struct pm_scan_arg arg = {
		.start = first[0].start,
		.end = first[n - 1].end,
		.vec = (uintptr_t)clean,
		.vec_len = READY_SPANS,
		.category_mask = PM_IS_WPALLOWED | PM_IS_WRITTEN | PM_IS_PRESENT,
		.category_inverted = PM_IS_WRITTEN,
		.return_mask = PM_IS_WPALLOWED,
	};
	long found = pm_pagemap_scan(pagemap, &arg), at = 0;

	for (uint32_t i = 0; i < n; i++) {
		const struct pm_group *group = &first[i];

		ready[i] = ready[i] && !pm_freeze_holds_stack(group->start, group->end);
		for (uint32_t r = 0; ready[i] && r < group->nruns; r++) {
			uint64_t start = group->runs[r].addr, end = start + pm_bytes(group->runs[r].npages);

			if (group->runs[r].flags & PM_RUN_GAP)
				continue;
			while (at < found && clean[at].end <= start)
				at++;
			ready[i] = at < found && clean[at].start <= start && clean[at].end >= end;
		}
	}
}

/* Copy the gap pages of a group out of its memory; the end of what was copied. */
static char *take_gaps(const struct pm_group *group, char *buffer)
{
	for (uint32_t r = 0; r < group->nruns; r++) {
		const struct pm_run *run = &group->runs[r];

		if (!(run->flags & PM_RUN_GAP))
			continue;
		memcpy(buffer, (const void *)(uintptr_t)run->addr, pm_bytes(run->npages));
		buffer += pm_bytes(run->npages);
	}
	return buffer;
}

/* And back into it, where there is a mapping of the pool now: private copies. */
static const char *put_gaps(const struct pm_group *group, const char *buffer)
{
	for (uint32_t r = 0; r < group->nruns; r++) {
		const struct pm_run *run = &group->runs[r];

		if (!(run->flags & PM_RUN_GAP))
			continue;
		pm_uffd_fill((void *)(uintptr_t)run->addr, buffer, pm_bytes(run->npages));
		buffer += pm_bytes(run->npages);
	}
	return buffer;
}

/* The pages are gone, so that this must succeed, by way of a copy of the content if need be. */
static void map_surely(const struct pm_group *group, int fd)
{
	size_t length = group->end - group->start;
	void *at = (void *)(uintptr_t)group->start;

	for (int turn = 0; turn < RESCUE_TURNS; turn++) {
		if (pm_mmap(at, length, group->prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, pm_bytes(group->runs->pgoff)) !=
		    MAP_FAILED)
			return;
		if (pm_mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
			memcpy(at, pm_group_view(group), length);
			if (pm_mprotect(at, length, group->prot) == 0)
				return;
		}
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	abort(); /* the kernel has no memory even for a mapping: better no program than one with wrong memory */
}

static void replace(struct pm_group *first, uint32_t n, const struct pm_request *request)
{
	for (uint32_t i = 0, k; i < n; i = k) {
		char *out = gaps;
		const char *back = gaps;

		k = ready[i] ? span(first, i, n) : i + 1;
		if (!ready[i])
			continue;
		for (uint32_t at = i; at < k; at++)
			out = take_gaps(&first[at], out);
		if (pm_munmap((void *)(uintptr_t)first[i].start, first[k - 1].end - first[i].start))
			continue;
		for (uint32_t at = i; at < k; at++) {
			map_surely(&first[at], request->fds[first[at].runs->segment]);
			first[at].copies = count_gaps(&first[at]);
			first[at].done = true;
		}
		if (out > gaps)
			pm_uffd_fill_begin(first[i].start, first[k - 1].end);
		for (uint32_t at = i; at < k; at++)
			back = put_gaps(&first[at], back);
		pm_uffd_fill_end();
	}
}

void pm_scatter(int pagemap, struct pm_group *first, uint32_t n, const struct pm_request *request, struct pm_outcome *outcome)
{
	uint64_t began;

	if (pm_gate_close(first->start, first[n - 1].end))
		return;
	if (choose(first, n, request)) {
		began = pm_clock_ns(CLOCK_MONOTONIC);
		if (!pm_stop_to_commit()) {
			leave_written(pagemap, first, n);
			if (pm_views_hold(request) && !pm_refusal_stale())
				replace(first, n, request);
			pm_freeze_end();
			outcome->result.barrier |= PM_BARRIER_FREEZE;
		}
		outcome->result.stopped_ns += pm_clock_ns(CLOCK_MONOTONIC) - began;
	}
	pm_gate_open();
}

void pm_scatter_end(void)
{
	pm_madvise(gaps, sizeof(gaps), MADV_DONTNEED);
}
