/* SPDX-License-Identifier: MIT */
/* The way back: pages of the pool become anonymous memory again.  And pages that are all zero are dropped. */
#include "group.h"
#include "refusal.h"
#include "step_back.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { STOP_MOST_USECS = 1000000 };

/* Put an anonymous copy in the place of [start, end), which lies in one mapping. The threads are stopped. */
static uint32_t put_anonymous(uint64_t start, uint64_t end, int prot)
{
	size_t length = end - start;
	void *at = (void *)(uintptr_t)start;
	char *copy;

	copy = pm_mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		return PM_FAIL_SYSTEM;
	if (!(prot & PROT_READ) && pm_mprotect(at, length, PROT_READ))
		goto failed;
	memcpy(copy, at, length);
	if (prot != (PROT_READ | PROT_WRITE) && pm_mprotect(copy, length, prot))
		goto failed;
	if (!pm_move(copy, length, at))
		return 0;
failed:
	pm_mprotect(at, length, prot);
	pm_munmap(copy, length);
	return PM_FAIL_SYSTEM;
}

/*
 * Stop the threads for what must be done and not only may: one that is slow to come is given more time.  They may be in the middle of calls that change mappings:
 * before or after such a call, what is there may become anonymous memory.
 */
static int stop_threads_surely(void)
{
	int error = -ETIMEDOUT;

	for (unsigned int timeout = PM_STOP_USECS; error == -ETIMEDOUT && timeout <= STOP_MOST_USECS; timeout *= 4)
		error = pm_freeze_begin(timeout);
	return error;
}

/*
 * Somebody else has taken hold of pages, and writes to them later, where they are: a copy would not get what is written.  So each page of the pool mappings becomes the process's own, and
 * the mappings stay what they are.
 */
static int make_own(uint64_t start, uint64_t end, struct pm_outcome *outcome)
{
	int result = 0;
	struct pm_vma vma;

	for (; start < end && pm_vma_find(start, &vma) == 0 && vma.start < end; start = vma.end) {
		uint64_t from = vma.start > start ? vma.start : start, to = vma.end < end ? vma.end : end;
		void *at = (void *)(uintptr_t)from;
		bool read_only = !(vma.prot & PROT_WRITE);

		if (!vma.pool)
			continue;
		if ((read_only && pm_mprotect(at, to - from, PROT_READ | PROT_WRITE)) || pm_madvise(at, to - from, MADV_POPULATE_WRITE)) {
			result = -errno;
			if (outcome)
				pm_fail(outcome, from, (uint32_t)((to - from) >> PM_PAGE_SHIFT), PM_FAIL_SYSTEM);
		} else if (outcome) {
			outcome->result.merged += (uint32_t)((to - from) >> PM_PAGE_SHIFT);
		}
		if (read_only)
			pm_mprotect(at, to - from, vma.prot);
	}
	return result;
}

/* Not held, but protected by the program's own userfaultfd, which may keep us from writing there, too. */
static bool only_protected(const struct pm_finding *finding)
{
	return strcmp(finding->refusal, "userfaultfd") == 0;
}

/* The threads are stopped. */
static bool has_come_to_be_held(void)
{
	struct pm_finding finding;

	if (!pm_refusal_stale())
		return false;
	pm_refusal_find(&finding, NULL, 0);
	return finding.refusal[0] && !only_protected(&finding);
}

/*
 * One stop serves many mappings, which may be of a page each: up to so many pages, and for so long.  A program that is at work is held for a shorter time, and then has
 * eight times as long for itself.
 */
enum { HELD_NSECS = 1000000, HELD_GENTLY_NSECS = 200000, GENTLY = 8, REST_MOST_NSECS = 2000000 };
struct stop {
	bool on, gentle;
	uint32_t pages;
	uint64_t began, all_since; /* ns: when it began, and when all threads had stopped */
	uint64_t rest_until;
};

static int begin(struct stop *stop, int (*stop_threads)(void))
{
	uint64_t now = pm_clock_ns(CLOCK_MONOTONIC);
	int error;

	if (stop->gentle && now < stop->rest_until)
		nanosleep(&(struct timespec){ .tv_nsec = (long)(stop->rest_until - now) }, NULL);
	stop->began = pm_clock_ns(CLOCK_MONOTONIC);
	stop->pages = 0;
	error = stop_threads();
	stop->all_since = pm_clock_ns(CLOCK_MONOTONIC);
	stop->on = !error;
	return error;
}

static void end_stop(struct stop *stop, struct pm_outcome *outcome)
{
	uint64_t took;

	if (!stop->on)
		return;
	pm_freeze_end();
	pm_give_way();
	stop->on = false;
	took = pm_clock_ns(CLOCK_MONOTONIC) - stop->began;
	stop->rest_until = stop->began + took + GENTLY * (took < REST_MOST_NSECS ? took : REST_MOST_NSECS);
	if (outcome)
		outcome->result.stopped_ns += took;
}

static void have_done(struct stop *stop, uint64_t bytes, struct pm_outcome *outcome)
{
	stop->pages += (uint32_t)(bytes >> PM_PAGE_SHIFT);
	if (stop->pages >= PM_GROUP_PAGES || pm_clock_ns(CLOCK_MONOTONIC) - stop->all_since > (stop->gentle ? HELD_GENTLY_NSECS : HELD_NSECS))
		end_stop(stop, outcome);
}

/* -EBUSY: somebody has come to hold pages, and nobody is stopped. */
static int stop_where_nothing_is_held(void)
{
	int error = stop_threads_surely();

	if (error || !has_come_to_be_held())
		return error == -EBUSY ? -EAGAIN : error;
	pm_freeze_end();
	return -EBUSY;
}

/* Make the pool mappings of [start, end) anonymous again, their content kept. */
static int make_anonymous(struct stop *stop, uint64_t start, uint64_t end, struct pm_outcome *outcome)
{
	int result = 0;

	while (start < end) {
		struct pm_vma vma;
		uint64_t stop_at;
		uint32_t why;

		if (pm_vma_find(start, &vma) || vma.start >= end)
			break;
		if (!vma.pool) {
			start = vma.end;
			continue;
		}
		if (!stop->on) {
			int error = begin(stop, stop_where_nothing_is_held);

			if (!error)
				continue; /* looked at once more, now that nobody changes it */
			if (error == -EBUSY)
				return make_own(start, end, outcome) ? -EAGAIN : -EBUSY;
		}
		start = vma.start > start ? vma.start : start;
		stop_at = vma.end < end ? vma.end : end;
		if (stop_at - start > pm_bytes(PM_GROUP_PAGES))
			stop_at = start + pm_bytes(PM_GROUP_PAGES);
		why = !stop->on				       ? PM_FAIL_BARRIER :
		      pm_freeze_holds_stack(start, stop_at) ? PM_FAIL_STACK :
							     put_anonymous(start, stop_at, vma.prot);
		if (outcome && why)
			pm_fail(outcome, start, (uint32_t)((stop_at - start) >> PM_PAGE_SHIFT), why);
		else if (outcome)
			outcome->result.merged += (uint32_t)((stop_at - start) >> PM_PAGE_SHIFT);
		if (why)
			result = -EAGAIN;
		have_done(stop, stop_at - start, outcome);
		start = stop_at;
	}
	return result;
}

int pm_make_anonymous(uint64_t start, uint64_t end)
{
	struct stop stop = { 0 };
	struct pm_finding finding;
	int error;

	pm_refusal_find(&finding, NULL, 0);
	error = finding.refusal[0] && !make_own(start, end, NULL) ? -EBUSY : -EAGAIN;
	if (!finding.refusal[0] || (error == -EAGAIN && only_protected(&finding)))
		error = make_anonymous(&stop, start, end, NULL);
	end_stop(&stop, NULL);
	/* A stack is in the way, or a thread did not come: no reason to refuse the program its call.  Pages of its own, where they are, will do. */
	if (error == -EAGAIN && !finding.refusal[0] && !make_own(start, end, NULL))
		error = -EBUSY;
	pm_refusal_forget();
	return error;
}

void pm_unmerge(const struct pm_range *ranges, uint32_t count, bool held, struct pm_outcome *outcome)
{
	struct stop stop = { 0 };

	pm_request_begin();
	stop.gentle = pm_is_delicate();
	for (uint32_t i = 0; i < count; i++)
		if (held)
			make_own(ranges[i].start, ranges[i].end, outcome);
		else
			make_anonymous(&stop, ranges[i].start, ranges[i].end, outcome);
	end_stop(&stop, outcome);
	pm_request_end(true);
	outcome->result.barrier |= PM_BARRIER_FREEZE;
}

static bool is_zero(const void *page)
{
	const uint64_t *words = page;
	uint64_t any = 0;

	for (size_t i = 0; i < PM_PAGE_SIZE / sizeof(*words); i++)
		any |= words[i];
	return any == 0;
}

/* Drop those pages of a range in one mapping that are all zero. The threads are stopped. */
static void drop_zero(uint64_t start, uint64_t end, struct pm_outcome *outcome)
{
	for (uint64_t addr = start, from; addr < end; addr += PM_PAGE_SIZE) {
		for (from = addr; addr < end && is_zero((const void *)(uintptr_t)addr);)
			addr += PM_PAGE_SIZE;
		if (addr > from) {
			uint32_t n = (uint32_t)((addr - from) >> PM_PAGE_SHIFT);

			if (pm_madvise((void *)(uintptr_t)from, addr - from, MADV_DONTNEED))
				pm_fail(outcome, from, n, PM_FAIL_SYSTEM);
			else
				outcome->result.merged += n;
		}
		if (addr < end)
			pm_fail(outcome, addr, 1, PM_FAIL_DIFFERS);
	}
}

void pm_zero(const struct pm_range *ranges, uint32_t count, struct pm_outcome *outcome)
{
	struct stop stop = { 0 };

	for (uint32_t i = 0; i < count; i++)
		for (uint64_t start = ranges[i].start, next; start < ranges[i].end; start = next) {
			uint64_t end = ranges[i].end;
			struct pm_vma vma;
			uint32_t why;

			next = end - start > pm_bytes(PM_GROUP_PAGES) ? start + pm_bytes(PM_GROUP_PAGES) : end;
			if (!stop.on && begin(&stop, pm_stop_to_commit))
				why = PM_FAIL_BARRIER;
			else if (pm_vma_find(start, &vma) || vma.start > start || !vma.anonymous || vma.shared || !(vma.prot & PROT_READ))
				why = PM_FAIL_GONE;
			else {
				next = vma.end < next ? vma.end : next;
				why = pm_freeze_holds_stack(start, next) ? PM_FAIL_STACK : 0;
			}
			if (why)
				pm_fail(outcome, start, (uint32_t)((next - start) >> PM_PAGE_SHIFT), why);
			else
				drop_zero(start, next, outcome);
			have_done(&stop, next - start, outcome);
		}
	end_stop(&stop, outcome);
	outcome->result.barrier |= PM_BARRIER_FREEZE;
}
