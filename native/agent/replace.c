/* SPDX-License-Identifier: MIT */
/*
 * Replacing pages by mappings of the pool.
 *
 * A request is cut into batches.  For each: prepare (look at the mappings, compare, build aside what has gaps), stop the
 * other threads, commit (see that nothing was written or changed since, and map), let them go on.  What is mapped equals
 * what was there at that instant, whatever the request said.
 */
#include "calls.h"
#include "group.h"
#include "marks.h"
#include "refusal.h"
#include "step_back.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

enum {
	BATCH_GROUPS = PM_SCATTER_GROUPS,
	BATCH_PAGES = 1024,
	BUSY_PAGES = 32, /* for a program that is at work */
	SCATTER_PAGES = 64, /* a group of so many or more is not a small one */
	SCATTER_LEAST = 4,  /* groups; fewer are not worth a stop */
	VMA_RESERVE = 1000,
	MANY_THREADS = 100, /* from which a stop is dear */
	REST = 20,          /* times what it took, until the next one */
	LOOK_NS = 2000000,
	SLEEPY_NS = 5000000, /* between two wake-ups of a program that sleeps, or more */
	SWITCHES_FEW = 4,
};

static struct pm_group groups[BATCH_GROUPS];
static long vmas_left;
static uint32_t window = PM_GROUP_PAGES;
static uint64_t prepared_end;
static uint64_t rest_until; /* ns */

void pm_fail(struct pm_outcome *outcome, uint64_t addr, uint32_t npages, uint32_t why)
{
	struct pm_header *header = &outcome->header;

	outcome->result.failed += npages;
	if (header->count) {
		struct pm_failed *last = &outcome->failed[header->count - 1];

		if (last->why == why && last->addr + pm_bytes(last->npages) == addr) {
			last->npages += npages;
			return;
		}
	}
	if (header->count < PM_FAILED_MAX)
		outcome->failed[header->count++] = (struct pm_failed){ addr, npages, why };
	else
		outcome->result.error = -ENOSPC; /* what is not listed would pass for merged */
}

/*
 * A program that is at work meets the pages that are kept from being written the more often, and waits the longer, the more they are at a time; and each of its threads that
 * is stopped is missed.  One that sleeps minds neither.  It is at work when it uses the CPU, or wakes up often, as one does that waits for requests.
 */
static struct meter {
	int64_t ns, used_ns, switches;
} before, between; /* at the end of the last request; and between requests, since it was last looked at */

static bool busy;

/* What threads may use, and how often each may sleep again, to come back from a stop. */
enum { STOPPED_NS = 200000, STOPPED_SWITCHES = 2 };

/* The clocks are not read at once: what is the program's may even go back a little. */
static struct meter read_meter(void)
{
	struct rusage all, own;

	getrusage(RUSAGE_SELF, &all);
	getrusage(RUSAGE_THREAD, &own);
	return (struct meter){
		.ns = (int64_t)pm_clock_ns(CLOCK_MONOTONIC),
		.used_ns = (int64_t)(pm_clock_ns(CLOCK_PROCESS_CPUTIME_ID) - pm_clock_ns(CLOCK_THREAD_CPUTIME_ID)),
		.switches = all.ru_nvcsw - own.ru_nvcsw,
	};
}

void pm_request_begin(void)
{
	struct meter now = read_meter();

	if (!before.ns)
		return;
	between.ns += now.ns - before.ns;
	between.used_ns += now.used_ns - before.used_ns;
	between.switches += now.switches - before.switches;
	if (between.ns < LOOK_NS) /* too little to tell */
		return;
	busy = between.used_ns > between.ns / 20 || between.switches > SWITCHES_FEW + between.ns / SLEEPY_NS;
	between = (struct meter){ 0 };
}

/* What it uses during a request does not count: being stopped takes CPU, too, of one that sleeps. */
void pm_request_end(bool stopped)
{
	before = read_meter();
	if (stopped) {
		before.used_ns += STOPPED_NS;
		before.switches += STOPPED_SWITCHES * (int64_t)pm_freeze_threads();
	}
}

/* Of many threads the stop itself takes longer than what it is for. */
bool pm_is_delicate(void)
{
	return busy && pm_freeze_threads() < MANY_THREADS;
}

/* Stopping thousands of threads takes tens of milliseconds of their time: so seldom that it stays a small part of it. */
static bool is_resting(void)
{
	return rest_until && pm_clock_ns(CLOCK_MONOTONIC) < rest_until;
}

/* How a group is kept still while it is looked at and replaced. */
static uint32_t choose_barrier(const struct pm_request *request, const struct pm_group *group)
{
	if (!(group->prot & PROT_WRITE) && pm_marks_sealed(group->start, group->end))
		return PM_BARRIER_SEALED;
	if (request->barrier & PM_BARRIER_UFFD && !request->direct && pm_marks_seen(group->start, group->end))
		return PM_BARRIER_UFFD;
	return request->barrier & PM_BARRIER_FREEZE ? PM_BARRIER_FREEZE : 0;
}

static bool is_small(const struct pm_group *group)
{
	return group->npages < SCATTER_PAGES;
}

/* Replace what is scattered; the groups that are done need nothing more. */
static void scatter(int pagemap, uint32_t n, const struct pm_request *request, struct pm_outcome *outcome)
{
	if (pagemap < 0 || request->give || request->direct || pm_opens_exchanges() || !(request->barrier & PM_BARRIER_FREEZE))
		return;
	if (pm_is_delicate() && request->barrier & PM_BARRIER_UFFD) /* which stops nobody, and takes twice the time for it */
		return;
	for (uint32_t i = 0, k; i < n; i = k) {
		for (k = i; k < n && is_small(&groups[k]) && groups[k].end - groups[i].start <= pm_bytes(window); k++)
			;
		if (k - i >= SCATTER_LEAST && !is_resting() && vmas_left > 2 * (long)(k - i) + 3)
			pm_scatter(pagemap, &groups[i], k - i, request, outcome);
		k += k == i;
	}
	for (uint32_t i = 0; i < n; i++)
		if (groups[i].done)
			vmas_left -= i && groups[i - 1].done && groups[i].start == groups[i - 1].end ? 1 : 2;
}

static void prepare(int pagemap, struct pm_group *group, const struct pm_request *request)
{
	if (group->done)
		return;
	if (vmas_left < 3) {
		group->why = PM_FAIL_VMAS;
		return;
	}
	group->why = pm_marks_wanted(group->start, group->end) ? pm_group_check(group) : PM_FAIL_GONE;
	if (group->why)
		return;
	/* In the middle of a mapping one becomes three; right after the group before, two. */
	if (!group->in_place)
		vmas_left -= group->start == prepared_end ? 1 : 2;
	prepared_end = group->end;
	group->barrier = choose_barrier(request, group);
	if (!group->barrier || (group->barrier == PM_BARRIER_FREEZE && is_resting()))
		group->why = PM_FAIL_BARRIER;
	pm_calls_note_merged(group->start, group->end); /* before it is: a call that does not see this is waited for */
	if (group->barrier != PM_BARRIER_FREEZE || group->why)
		return;
	group->tracked = !request->direct && pm_range_track(pagemap, group->start, group->end) && /* a stopped thread's reads are over */
			 !pm_writes_under_way();
	if (group->tracked)
		group->why = pm_group_examine(group, request->fds, false);
}

static void finish(struct pm_group *group, struct pm_outcome *outcome)
{
	if (group->aside)
		pm_munmap(group->aside, group->end - group->start);
	pm_group_report(outcome, group, group->why != 0, group->why ? group->why : PM_FAIL_DIFFERS);
	if (!group->why) {
		outcome->result.copied += group->copies;
		outcome->result.mappings += !group->in_place;
	}
}

/* Groups that nobody may write to, or that the kernel keeps writers from: looked at and replaced without a stop. */
static void commit_window(int pagemap, struct pm_group *first, uint32_t n, const struct pm_request *request,
			  struct pm_outcome *outcome)
{
	uint64_t start = first->start, end = first[n - 1].end;
	int error = pm_gate_close(start, end), fd = -1;
	bool closed = !error, protected = false;

	if (closed && first->barrier == PM_BARRIER_UFFD) {
		fd = pm_uffd_open();
		error = fd < 0 ? fd : pm_uffd_protect(fd, start, end, request->tracker);
		protected = !error;
		if (protected && pm_refusal_stale()) /* a page could have been taken hold of before it was protected */
			error = -EAGAIN;
	}
	for (uint32_t i = 0; i < n; i++) {
		struct pm_group *group = &first[i];

		if (group->why)
			continue;
		if (!error)
			group->why = pm_group_check(group);
		/* The gate keeps the mapping, so it can be looked at in place: half the cost of process_vm_readv. */
		if (!error && !group->why)
			group->why = pm_group_examine(group, request->fds, (group->prot & PROT_READ) != 0);
		if (!error && !group->why)
			group->why = pm_group_commit(pagemap, group, request->fds, false);
		if (error) /* the other barrier may do */
			group->barrier = PM_BARRIER_FREEZE;
	}
	if (protected)
		pm_uffd_release(fd, start, end);
	if (closed)
		pm_gate_open();
	if (!error)
		outcome->result.barrier |= first->barrier;
}

static void commit_unstopped(int pagemap, uint32_t n, const struct pm_request *request, struct pm_outcome *outcome)
{
	for (uint32_t i = 0, k; i < n; i = k) {
		struct pm_group *first = &groups[i];

		k = i + 1;
		if (first->done || first->why || first->barrier == PM_BARRIER_FREEZE)
			continue;
		while (k < n && !groups[k].done && !groups[k].why && groups[k].barrier == first->barrier && groups[k].start >= groups[k - 1].end &&
		       groups[k].end - first->start <= pm_bytes(window) &&
		       (first->barrier != PM_BARRIER_UFFD || pm_marks_seen(groups[k - 1].end, groups[k].start)))
			k++;
		commit_window(pagemap, first, k - i, request, outcome);
		pm_give_way();
	}
}

int pm_stop_threads(unsigned int timeout_usecs)
{
	for (int turn = 0; turn < 20; turn++) {
		int error = pm_freeze_begin(timeout_usecs);

		if (error || !pm_gate_busy())
			return error;
		pm_freeze_end();
		nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
	}
	return -EBUSY;
}

int pm_stop_to_commit(void)
{
	int error = is_resting() ? -EAGAIN : pm_stop_threads(PM_STOP_USECS);

	if (error != -EAGAIN && pm_freeze_threads() >= MANY_THREADS)
		rest_until = pm_clock_ns(CLOCK_MONOTONIC) + pm_freeze_threads() * (1000ull * PM_FREEZE_USECS_A_THREAD * REST);
	if (error || !pm_refusal_stale())
		return error;
	pm_freeze_end();
	return -EAGAIN;
}

/* Stop the threads and commit what needs that. */
static void commit_stopped(int pagemap, uint32_t n, const struct pm_request *request, struct pm_outcome *outcome)
{
	uint64_t start, held_since, most = (request->freeze_max_usecs ? request->freeze_max_usecs : 1000) * 1000ull;
	uint32_t i, wanted = 0;
	int error;

	for (i = 0; i < n; i++)
		wanted += !groups[i].done && !groups[i].why && groups[i].barrier == PM_BARRIER_FREEZE;
	if (!wanted)
		return;
	start = pm_clock_ns(CLOCK_MONOTONIC);
	error = request->barrier & PM_BARRIER_FREEZE ? pm_stop_to_commit() : -EPERM;
	held_since = pm_clock_ns(CLOCK_MONOTONIC);
	for (i = 0; i < n; i++) {
		if (groups[i].done || groups[i].why || groups[i].barrier != PM_BARRIER_FREEZE)
			continue;
		if (error) {
			groups[i].why = PM_FAIL_BARRIER;
			continue;
		}
		groups[i].why = pm_group_commit(pagemap, &groups[i], request->fds, true);
		if (pm_clock_ns(CLOCK_MONOTONIC) - held_since > most && i + 1 < n) { /* let them breathe */
			pm_freeze_end();
			outcome->result.stopped_ns += pm_clock_ns(CLOCK_MONOTONIC) - start;
			start = pm_clock_ns(CLOCK_MONOTONIC);
			error = pm_stop_to_commit();
			held_since = pm_clock_ns(CLOCK_MONOTONIC);
		}
	}
	if (!error)
		pm_freeze_end();
	outcome->result.stopped_ns += pm_clock_ns(CLOCK_MONOTONIC) - start;
	outcome->result.barrier |= PM_BARRIER_FREEZE;
}

static long read_max_map_count(void)
{
	char text[32];
	int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	long value = 0;

	if (fd >= 0)
		close(fd);
	for (ssize_t i = 0; i < n && text[i] >= '0' && text[i] <= '9'; i++)
		value = value * 10 + (text[i] - '0');
	return value ? value : 65530;
}

void pm_merge(const struct pm_request *request, struct pm_outcome *outcome)
{
	int pagemap = open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
	long most = read_max_map_count();

	pm_dump_merged();
	pm_request_begin();
	window = pm_is_delicate() ? BUSY_PAGES : PM_GROUP_PAGES;
	outcome->result.error = pm_views_map(request);
	pm_vma_begin();
	vmas_left = most - most / 10 - VMA_RESERVE - request->vmas;
	most = vmas_left;
	for (uint32_t at = 0; at < request->count && !outcome->result.error;) {
		uint32_t n = 0, pages = 0;

		while (at < request->count && n < BATCH_GROUPS && pages < BATCH_PAGES) {
			at += pm_group_take(request->runs + at, request->count - at, window, &groups[n]);
			groups[n].give = request->give;
			pages += groups[n].npages;
			n++;
		}
		scatter(pagemap, n, request, outcome);
		for (uint32_t i = 0; i < n; i++)
			prepare(pagemap, &groups[i], request);
		commit_unstopped(pagemap, n, request, outcome);
		commit_stopped(pagemap, n, request, outcome);
		for (uint32_t i = 0; i < n; i++)
			finish(&groups[i], outcome);
	}
	pm_vma_end();
	pm_vma_note(most - vmas_left);
	pm_views_unmap(request->nfds);
	pm_scatter_end();
	pm_request_end(outcome->result.barrier & PM_BARRIER_FREEZE);
	if (pagemap >= 0)
		close(pagemap);
}
