/* SPDX-License-Identifier: MIT */
/*
 * Replacing pages by mappings of the pool.
 *
 * A request is cut into batches.  For each: prepare (look at the mappings, compare, build aside what has gaps), stop the
 * other threads, commit (see that nothing was written or changed since, and map), let them go on.  What is mapped equals
 * what was there at that instant, whatever the request said.
 */
#include "calls.h"
#include "marks.h"
#include "replace.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

enum {
	BATCH_GROUPS = 256,
	BATCH_PAGES = 1024,
	GROUP_PAGES = 512,
	BUSY_PAGES = 32, /* for a program that is at work */
	ASIDE_PAGES = 16,
	COPY_AT_MOST = 8, /* pages that prove different are kept as private copies, up to this many a group */
	BOUNCE_PAGES = 32,
	STOP_TIMEOUT_USECS = 3000,
	STOP_MOST_USECS = 200000,
	VMA_RESERVE = 1000,
};

struct group {
	const struct pm_run *runs;
	uint32_t nruns, npages, copies, why;
	uint64_t start, end;
	int prot;
	uint32_t barrier; /* enum pm_barrier */
	bool tracked;  /* the kernel notes what is written after prepare */
	bool in_place; /* mapped from just there already: private copies are dropped */
	char *aside;   /* the mapping that will take its place; NULL: the pool is mapped directly */
	uint64_t differs[GROUP_PAGES / 64];
};

static struct group groups[BATCH_GROUPS];
static unsigned char bounce[BOUNCE_PAGES * PM_PAGE_SIZE] __attribute__((aligned(4096)));
static char *views[PM_FDS_MAX];
static size_t view_bytes[PM_FDS_MAX];
static uint64_t inodes[PM_FDS_MAX];
static long vmas_left;
static uint32_t window = GROUP_PAGES;
static uint64_t prepared_end;

static uint64_t bytes(uint64_t pages)
{
	return pages << PM_PAGE_SHIFT;
}

static int read_self(void *to, uint64_t from, size_t length)
{
	struct iovec local = { to, length }, remote = { (void *)(uintptr_t)from, length };
	ssize_t n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	if (n < 0 && (errno == EPERM || errno == ENOSYS)) {
		int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			return -errno;
		n = pread(fd, to, length, (off_t)from);
		close(fd);
	}
	return n == (ssize_t)length ? 0 : -EFAULT;
}

static void fail(struct pm_outcome *outcome, uint64_t addr, uint32_t npages, uint32_t why)
{
	struct pm_header *header = &outcome->header;

	outcome->result.failed += npages;
	if (header->count) {
		struct pm_failed *last = &outcome->failed[header->count - 1];

		if (last->why == why && last->addr + bytes(last->npages) == addr) {
			last->npages += npages;
			return;
		}
	}
	if (header->count < PM_FAILED_MAX)
		outcome->failed[header->count++] = (struct pm_failed){ addr, npages, why };
	else
		outcome->result.error = -ENOSPC; /* what is not listed would pass for merged */
}

/* Report the merge pages of a group for which `differs` is set, or all of them. */
static void fail_group(struct pm_outcome *outcome, const struct group *group, bool all, uint32_t why)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];

		if (run->flags & PM_RUN_GAP)
			continue;
		for (uint32_t page = 0; page < run->npages; page++) {
			uint64_t addr = run->addr + bytes(page), at = (addr - group->start) >> PM_PAGE_SHIFT;

			if (all || group->differs[at / 64] >> at % 64 & 1)
				fail(outcome, addr, 1, why);
			else
				outcome->result.merged++;
		}
	}
}

/* The whole of the group must be private memory of one protection that may be replaced: 0 or enum pm_failure. */
static uint32_t check_mappings(struct group *group)
{
	const struct pm_run *first = group->runs;
	int prot = group->prot;
	bool in_place = true;

	if (pm_is_own(group->start, group->end))
		return PM_FAIL_GONE;
	for (uint64_t at = group->start; at < group->end;) {
		struct pm_vma vma;

		if (pm_vma_find(at, &vma) || vma.start > at || vma.shared || !(vma.anonymous || vma.pool) ||
		    vma.prot & PROT_EXEC || (prot >= 0 && vma.prot != prot))
			return PM_FAIL_GONE;
		prot = vma.prot;
		in_place = in_place && vma.pool && vma.inode == inodes[first->segment] &&
			   vma.offset + (at - vma.start) == bytes(first->pgoff) + (at - group->start);
		at = vma.end;
	}
	group->prot = prot;
	group->in_place = in_place;
	return 0;
}

/* From now on the kernel notes what is written to the group; false where it can't. */
static bool track(int pagemap, const struct group *group)
{
	struct pm_scan_arg arg = {
		.flags = PM_SCAN_WP_MATCHING_ | PM_SCAN_CHECK_WPASYNC_,
		.start = group->start,
		.end = group->end,
		.category_mask = PM_IS_WRITTEN,
	};

	return pagemap >= 0 && pm_pagemap_scan(pagemap, &arg) >= 0;
}

/*
 * Compare the merge pages with the pool's, seen in the mapping aside or else in the view of the segment.  `direct`: nothing can take the memory away,
 * so that it can be looked at in place.
 */
static int compare(struct group *group, bool direct)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];
		const char *pool = group->aside ? group->aside + (run->addr - group->start) :
						  views[run->segment] + bytes(run->pgoff);

		if (run->flags & PM_RUN_GAP)
			continue;
		for (uint32_t page = 0; page < run->npages; page += BOUNCE_PAGES) {
			uint32_t n = run->npages - page < BOUNCE_PAGES ? run->npages - page : BOUNCE_PAGES;
			const unsigned char *mine = bounce;

			if (direct)
				mine = (const unsigned char *)(uintptr_t)(run->addr + bytes(page));
			else if (read_self(bounce, run->addr + bytes(page), bytes(n)))
				return -EFAULT;
			for (uint32_t k = 0; k < n; k++) {
				uint64_t at = ((run->addr - group->start) >> PM_PAGE_SHIFT) + page + k;

				if (memcmp(mine + bytes(k), pool + bytes(page + k), PM_PAGE_SIZE))
					group->differs[at / 64] |= 1ULL << at % 64;
			}
		}
	}
	return 0;
}

static uint32_t count_differs(const struct group *group)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < GROUP_PAGES / 64; i++)
		n += (uint32_t)__builtin_popcountll(group->differs[i]);
	return n;
}

/* Copy one page of the group into the mapping aside. */
static int copy_aside(struct group *group, uint64_t addr, bool direct)
{
	char *to = group->aside + (addr - group->start);

	if (direct) {
		memcpy(to, (const void *)(uintptr_t)addr, PM_PAGE_SIZE);
		return 0;
	}
	return read_self(to, addr, PM_PAGE_SIZE);
}

/*
 * The descriptor is still the segment's.  The program may close what it did not open, and get the number for a file of its own; once lost, a segment does not come
 * back, so that what was mapped before this look was the segment.
 */
static bool still_segment(uint32_t segment, int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && status.st_ino == inodes[segment] && (size_t)status.st_size == view_bytes[segment];
}

/* Map what will take the group's place. */
static int map_aside(struct group *group, const int *fds)
{
	const struct pm_run *first = group->runs;

	group->aside = pm_mmap(NULL, group->end - group->start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
			       fds[first->segment], bytes(first->pgoff));
	if (group->aside == MAP_FAILED) {
		group->aside = NULL;
		return -ENOMEM;
	}
	return 0;
}

/* Gap pages and pages that differ become private copies in it. */
static int fill_aside(struct group *group, bool direct)
{
	int error = 0;

	for (uint32_t i = 0; i < group->nruns && !error; i++) {
		const struct pm_run *run = &group->runs[i];

		for (uint32_t page = 0; page < run->npages && !error; page++) {
			uint64_t addr = run->addr + bytes(page), at = (addr - group->start) >> PM_PAGE_SHIFT;

			if (run->flags & PM_RUN_GAP || group->differs[at / 64] >> at % 64 & 1) {
				error = copy_aside(group, addr, direct);
				group->copies++;
			}
		}
	}
	return error;
}

/* Compare and build: 0 or enum pm_failure. */
static uint32_t examine(struct group *group, const int *fds, bool direct)
{
	bool has_gaps = group->nruns > 1;
	uint32_t different;

	if (direct && !(group->prot & PROT_READ))
		return PM_FAIL_GONE;
	/* A long group is compared with the mapping that will take its place: it has its page tables by then. */
	if (!group->in_place && (has_gaps || group->npages >= ASIDE_PAGES) && map_aside(group, fds))
		return PM_FAIL_SYSTEM;
	if (compare(group, direct))
		return PM_FAIL_GONE;
	different = count_differs(group);
	if (different == group->npages || different > COPY_AT_MOST + group->npages / 4)
		return PM_FAIL_DIFFERS;
	if (different && !group->in_place && !group->aside && map_aside(group, fds))
		return PM_FAIL_SYSTEM;
	return group->aside && fill_aside(group, direct) ? PM_FAIL_GONE : 0;
}

/* Pages written since prepare: 0 when that was dealt with, else enum pm_failure.  The threads are stopped. */
static uint32_t settle_writes(int pagemap, struct group *group)
{
	struct pm_page_region regions[32];
	struct pm_scan_arg arg = {
		.flags = PM_SCAN_CHECK_WPASYNC_,
		.start = group->start,
		.end = group->end,
		.vec = (uintptr_t)regions,
		.vec_len = 32,
		.category_mask = PM_IS_WRITTEN,
		.return_mask = PM_IS_WRITTEN,
	};
	long n = pm_pagemap_scan(pagemap, &arg);
	uint32_t copied = 0;

	if (n < 0)
		return PM_FAIL_GONE;
	if (n == 32)
		return PM_FAIL_WRITTEN;
	for (long i = 0; i < n; i++)
		for (uint64_t addr = regions[i].start; addr < regions[i].end; addr += PM_PAGE_SIZE) {
			uint64_t at = (addr - group->start) >> PM_PAGE_SHIFT;

			if (!group->aside && !group->in_place)
				return PM_FAIL_WRITTEN;
			if (++copied > COPY_AT_MOST)
				return PM_FAIL_WRITTEN;
			group->differs[at / 64] |= 1ULL << at % 64;
			if (group->aside)
				copy_aside(group, addr, true);
		}
	return 0;
}

/* Private copies that equal what is below them are dropped; page by page where some differ. */
static int drop_copies(const struct group *group)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];

		for (uint32_t page = 0; !(run->flags & PM_RUN_GAP) && page < run->npages; page++) {
			uint64_t addr = run->addr + bytes(page), at = (addr - group->start) >> PM_PAGE_SHIFT;

			if (!(group->differs[at / 64] >> at % 64 & 1) &&
			    pm_madvise((void *)(uintptr_t)addr, PM_PAGE_SIZE, MADV_DONTNEED))
				return -errno;
		}
	}
	return 0;
}

/* Map: 0 or enum pm_failure.  The threads are stopped, or nobody may write. */
static uint32_t commit(int pagemap, struct group *group, const int *fds, bool stopped)
{
	const struct pm_run *first = group->runs;
	size_t length = group->end - group->start;
	void *at = (void *)(uintptr_t)group->start;
	uint32_t why = stopped ? check_mappings(group) : 0; /* behind the gate nothing has changed since it was looked at */

	if (why)
		return why;
	if (stopped && pm_freeze_holds_stack(group->start, group->end))
		return PM_FAIL_STACK;
	if (group->tracked)
		why = settle_writes(pagemap, group);
	else if (stopped)
		why = examine(group, fds, true);
	if (why)
		return why;
	if (group->in_place)
		return drop_copies(group) ? PM_FAIL_SYSTEM : 0;
	if (!group->aside && !still_segment(first->segment, fds[first->segment])) /* the others are stopped */
		return PM_FAIL_SYSTEM;
	if (!group->aside)
		return pm_mmap(at, length, group->prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fds[first->segment],
			    bytes(first->pgoff)) == MAP_FAILED ?
			       PM_FAIL_SYSTEM :
			       0;
	if (group->prot != (PROT_READ | PROT_WRITE) && pm_mprotect(group->aside, length, group->prot))
		return PM_FAIL_SYSTEM;
	if (pm_move(group->aside, length, at))
		return PM_FAIL_SYSTEM;
	group->aside = NULL;
	return 0;
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/*
 * How many pages are kept from being written at a time.  A program that is at work meets them the more often, and waits the longer, the more they
 * are; one that sleeps does not mind.
 */
static uint32_t choose_window(void)
{
	static uint64_t used_before, at_before;
	uint64_t used = now_ns(CLOCK_PROCESS_CPUTIME_ID) - now_ns(CLOCK_THREAD_CPUTIME_ID), at = now_ns(CLOCK_MONOTONIC);
	bool busy = used - used_before > (at - at_before) / 20;

	used_before = used;
	at_before = at;
	return busy ? BUSY_PAGES : GROUP_PAGES;
}

/* Cut the next group off the runs, at a place where no gap is when it gets long: how many runs it takes. */
static uint32_t take_group(const struct pm_run *runs, uint32_t count, uint32_t window, struct group *group)
{
	uint32_t n = 1, pages = runs[0].npages;

	for (; n < count && runs[n].flags & PM_RUN_JOINED; n++) {
		if (pages >= window && !((runs[n].flags | runs[n - 1].flags) & PM_RUN_GAP))
			break;
		pages += runs[n].npages;
	}
	memset(group, 0, sizeof(*group));
	group->runs = runs;
	group->nruns = n;
	group->prot = -1;
	group->start = runs[0].addr;
	group->end = runs[n - 1].addr + bytes(runs[n - 1].npages);
	group->npages = (uint32_t)((group->end - group->start) >> PM_PAGE_SHIFT);
	return n;
}

/* How a group is kept still while it is looked at and replaced. */
static uint32_t choose_barrier(const struct pm_request *request, const struct group *group)
{
	if (!(group->prot & PROT_WRITE) && pm_marks_sealed(group->start, group->end))
		return PM_BARRIER_SEALED;
	if (request->barrier & PM_BARRIER_UFFD && !request->direct && pm_marks_seen(group->start, group->end))
		return PM_BARRIER_UFFD;
	return request->barrier & PM_BARRIER_FREEZE ? PM_BARRIER_FREEZE : 0;
}

static void prepare(int pagemap, struct group *group, const struct pm_request *request)
{
	if (vmas_left < 3) {
		group->why = PM_FAIL_VMAS;
		return;
	}
	group->why = pm_marks_wanted(group->start, group->end) ? check_mappings(group) : PM_FAIL_GONE;
	if (group->why)
		return;
	/* In the middle of a mapping one becomes three; right after the group before, two. */
	if (!group->in_place)
		vmas_left -= group->start == prepared_end ? 1 : 2;
	prepared_end = group->end;
	group->barrier = choose_barrier(request, group);
	if (!group->barrier)
		group->why = PM_FAIL_BARRIER;
	pm_calls_note_merged(group->start, group->end); /* before it is: a call that does not see this is waited for */
	if (group->barrier != PM_BARRIER_FREEZE)
		return;
	group->tracked = !request->direct && track(pagemap, group); /* a stopped thread's reads are over */
	if (group->tracked)
		group->why = examine(group, request->fds, false);
}

static void finish(struct group *group, struct pm_outcome *outcome)
{
	if (group->aside)
		pm_munmap(group->aside, group->end - group->start);
	fail_group(outcome, group, group->why != 0, group->why ? group->why : PM_FAIL_DIFFERS);
	if (!group->why) {
		outcome->result.copied += group->copies;
		outcome->result.mappings += !group->in_place;
	}
}

/* Groups that nobody may write to, or that the kernel keeps writers from: looked at and replaced without a stop. */
static void commit_window(int pagemap, struct group *first, uint32_t n, const struct pm_request *request,
			  struct pm_outcome *outcome)
{
	uint64_t start = first->start, end = first[n - 1].end;
	int error = pm_gate_close(start, end), fd = request->uffd;
	bool closed = !error, protected = false;

	if (closed && first->barrier == PM_BARRIER_UFFD) {
		error = fd < 0 ? fd : pm_uffd_protect(fd, start, end, request->tracker);
		protected = !error;
	}
	for (uint32_t i = 0; i < n; i++) {
		struct group *group = &first[i];

		if (group->why)
			continue;
		if (!error)
			group->why = check_mappings(group);
		/* The gate keeps the mapping, so it can be looked at in place: half the cost of process_vm_readv. */
		if (!error && !group->why)
			group->why = examine(group, request->fds, (group->prot & PROT_READ) != 0);
		if (!error && !group->why)
			group->why = commit(pagemap, group, request->fds, false);
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
		struct group *first = &groups[i];

		k = i + 1;
		if (first->why || first->barrier == PM_BARRIER_FREEZE)
			continue;
		while (k < n && !groups[k].why && groups[k].barrier == first->barrier && groups[k].start >= groups[k - 1].end &&
		       groups[k].end - first->start <= bytes(window) &&
		       (first->barrier != PM_BARRIER_UFFD || pm_marks_seen(groups[k - 1].end, groups[k].start)))
			k++;
		commit_window(pagemap, first, k - i, request, outcome);
	}
}

/* Stop the threads, none of them in the middle of a call that changes mappings: 0 or -errno. */
static int stop_threads(unsigned int timeout_usecs)
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

/* Stop the threads and commit what needs that. */
static void commit_stopped(int pagemap, uint32_t n, const struct pm_request *request, struct pm_outcome *outcome)
{
	uint64_t start, most = (request->freeze_max_usecs ? request->freeze_max_usecs : 1000) * 1000ull;
	uint32_t i, wanted = 0;
	int error;

	for (i = 0; i < n; i++)
		wanted += !groups[i].why && groups[i].barrier == PM_BARRIER_FREEZE;
	if (!wanted)
		return;
	start = now_ns(CLOCK_MONOTONIC);
	error = request->barrier & PM_BARRIER_FREEZE ? stop_threads(STOP_TIMEOUT_USECS) : -EPERM;
	for (i = 0; i < n; i++) {
		if (groups[i].why || groups[i].barrier != PM_BARRIER_FREEZE)
			continue;
		if (error) {
			groups[i].why = PM_FAIL_BARRIER;
			continue;
		}
		groups[i].why = commit(pagemap, &groups[i], request->fds, true);
		if (now_ns(CLOCK_MONOTONIC) - start > most && i + 1 < n) { /* let them breathe */
			pm_freeze_end();
			outcome->result.stopped_ns += now_ns(CLOCK_MONOTONIC) - start;
			start = now_ns(CLOCK_MONOTONIC);
			error = stop_threads(STOP_TIMEOUT_USECS);
		}
	}
	if (!error)
		pm_freeze_end();
	outcome->result.stopped_ns += now_ns(CLOCK_MONOTONIC) - start;
	outcome->result.barrier |= PM_BARRIER_FREEZE;
}

/* A memfd with the pool's name, by which its mappings are known later, that can't shrink under us or be written any more. */
static bool is_segment(int fd)
{
	static const int needed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
	char path[48], target[sizeof(PM_POOL_PATH)] = "";
	int seals = fcntl(fd, F_GET_SEALS);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return seals >= 0 && (seals & needed) == needed && readlink(path, target, sizeof(target) - 1) > 0 &&
	       strcmp(target, PM_POOL_PATH) == 0;
}

static int map_views(const struct pm_request *request)
{
	for (uint32_t i = 0; i < request->nfds; i++) {
		struct stat status;

		if (fstat(request->fds[i], &status))
			return -errno;
		if (!is_segment(request->fds[i]))
			return -EPERM;
		inodes[i] = status.st_ino;
		view_bytes[i] = (size_t)status.st_size;
		views[i] = pm_mmap(NULL, view_bytes[i], PROT_READ, MAP_SHARED | MAP_NORESERVE, request->fds[i], 0);
		if (views[i] == MAP_FAILED) {
			views[i] = NULL;
			return -errno;
		}
		if (!still_segment(i, request->fds[i]))
			return -EBADF;
	}
	for (uint32_t i = 0; i < request->count; i++) /* never beyond a segment's end: that would be SIGBUS */
		if (bytes((uint64_t)request->runs[i].pgoff + request->runs[i].npages) > view_bytes[request->runs[i].segment])
			return -EINVAL;
	return 0;
}

static void unmap_views(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (views[i])
			pm_munmap(views[i], view_bytes[i]);
		views[i] = NULL;
	}
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
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	long most = read_max_map_count();

	window = choose_window();
	outcome->result.error = map_views(request);
	pm_vma_begin();
	vmas_left = most - most / 10 - VMA_RESERVE - request->vmas;
	most = vmas_left;
	for (uint32_t at = 0; at < request->count && !outcome->result.error;) {
		uint32_t n = 0, pages = 0;

		while (at < request->count && n < BATCH_GROUPS && pages < BATCH_PAGES) {
			at += take_group(request->runs + at, request->count - at, window, &groups[n]);
			pages += groups[n].npages;
			prepare(pagemap, &groups[n++], request);
		}
		commit_unstopped(pagemap, n, request, outcome);
		commit_stopped(pagemap, n, request, outcome);
		for (uint32_t i = 0; i < n; i++)
			finish(&groups[i], outcome);
	}
	pm_vma_end();
	pm_vma_note(most - vmas_left);
	unmap_views(request->nfds);
	pm_madvise(bounce, sizeof(bounce), MADV_DONTNEED); /* a guest takes little room */
	if (pagemap >= 0)
		close(pagemap);
}

/* Put an anonymous copy in the place of [start, end), which lies in one mapping. The threads are stopped. */
static uint32_t put_anonymous(uint64_t start, uint64_t end, int prot, bool keep)
{
	size_t length = end - start;
	void *at = (void *)(uintptr_t)start;
	char *copy;

	if (!keep)
		return pm_mmap(at, length, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED ?
			       PM_FAIL_SYSTEM :
			       0;
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

/* The same, for what must be done and not only may: a thread that is slow to come is given more time. */
static int stop_threads_surely(void)
{
	int error = -ETIMEDOUT;

	for (unsigned int timeout = STOP_TIMEOUT_USECS; error == -ETIMEDOUT && timeout <= STOP_MOST_USECS; timeout *= 4)
		error = stop_threads(timeout);
	return error;
}

/* Make the pool mappings of [start, end) anonymous again, their content kept or dropped; a stop for every 512 pages. */
int pm_make_anonymous(uint64_t start, uint64_t end, bool keep, struct pm_outcome *outcome)
{
	int result = 0;

	while (start < end) {
		struct pm_vma vma;
		uint64_t stop_at, began = now_ns(CLOCK_MONOTONIC);
		uint32_t why = PM_FAIL_BARRIER;

		if (pm_vma_find(start, &vma) || vma.start >= end)
			break;
		if (!vma.pool) {
			start = vma.end;
			continue;
		}
		start = vma.start > start ? vma.start : start;
		stop_at = vma.end < end ? vma.end : end;
		if (stop_at - start > bytes(GROUP_PAGES))
			stop_at = start + bytes(GROUP_PAGES);
		if (stop_threads_surely() == 0) {
			why = pm_vma_find(start, &vma) || !vma.pool || vma.start > start || vma.end < stop_at ? PM_FAIL_GONE :
			      pm_freeze_holds_stack(start, stop_at)                                        ? PM_FAIL_STACK :
								put_anonymous(start, stop_at, vma.prot, keep);
			pm_freeze_end();
		}
		if (outcome) {
			outcome->result.stopped_ns += now_ns(CLOCK_MONOTONIC) - began;
			if (why)
				fail(outcome, start, (uint32_t)((stop_at - start) >> PM_PAGE_SHIFT), why);
			else
				outcome->result.merged += (uint32_t)((stop_at - start) >> PM_PAGE_SHIFT);
		}
		if (why)
			result = -EAGAIN;
		start = stop_at;
	}
	return result;
}

void pm_unmerge(const struct pm_range *ranges, uint32_t count, struct pm_outcome *outcome)
{
	for (uint32_t i = 0; i < count; i++)
		pm_make_anonymous(ranges[i].start, ranges[i].end, true, outcome);
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
				fail(outcome, from, n, PM_FAIL_SYSTEM);
			else
				outcome->result.merged += n;
		}
		if (addr < end)
			fail(outcome, addr, 1, PM_FAIL_DIFFERS);
	}
}

void pm_zero(const struct pm_range *ranges, uint32_t count, struct pm_outcome *outcome)
{
	for (uint32_t i = 0; i < count; i++)
		for (uint64_t start = ranges[i].start, next; start < ranges[i].end; start = next) {
			uint64_t end = ranges[i].end, began = now_ns(CLOCK_MONOTONIC);
			uint32_t why = PM_FAIL_BARRIER;
			struct pm_vma vma;

			next = end - start > bytes(GROUP_PAGES) ? start + bytes(GROUP_PAGES) : end;
			if (stop_threads(STOP_TIMEOUT_USECS) == 0) {
				why = pm_vma_find(start, &vma) || vma.start > start || !vma.anonymous || vma.shared ||
						      !(vma.prot & PROT_READ) ?
					      PM_FAIL_GONE :
					      0;
				if (!why && vma.end < next)
					next = vma.end;
				if (!why && pm_freeze_holds_stack(start, next))
					why = PM_FAIL_STACK;
				if (!why)
					drop_zero(start, next, outcome);
				pm_freeze_end();
			}
			outcome->result.stopped_ns += now_ns(CLOCK_MONOTONIC) - began;
			if (why)
				fail(outcome, start, (uint32_t)((next - start) >> PM_PAGE_SHIFT), why);
		}
	outcome->result.barrier |= PM_BARRIER_FREEZE;
}
