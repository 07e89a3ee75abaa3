/* SPDX-License-Identifier: MIT */
#include "group.h"

#include "calls.h"
#include "marks.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum {
	ASIDE_PAGES = 16,
	COPY_AT_MOST = 8, /* pages that prove different are kept as private copies, up to this many a group */
	BOUNCE_PAGES = 32,
	AROUND = 16 * PM_PAGE_SIZE, /* fault_around_bytes, as the kernel has it where nobody has changed it */
};

static unsigned char bounce[BOUNCE_PAGES * PM_PAGE_SIZE] __attribute__((aligned(4096)));
static char *views[PM_FDS_MAX];
static size_t view_bytes[PM_FDS_MAX];
static uint64_t inodes[PM_FDS_MAX];

int pm_read_self(void *to, uint64_t from, size_t length)
{
	struct iovec local = { to, length }, remote = { (void *)(uintptr_t)from, length };
	/* Not by the name, which is interposed: it would pass for the program's. */
	ssize_t n = syscall(SYS_process_vm_readv, (pid_t)syscall(SYS_gettid), &local, 1, &remote, 1, 0);

	if (n < 0 && (errno == EPERM || errno == ENOSYS)) {
		int fd = open("/proc/thread-self/mem", O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			return -errno;
		n = pread(fd, to, length, (off_t)from);
		close(fd);
	}
	return n == (ssize_t)length ? 0 : -EFAULT;
}

/*
 * Report the merge pages of a group for which `differs` is set, or all of them.  Where most differ the group is given up, and the others with it: they are to be tried
 * again, for they are not known to be other than they were said to be.
 */
void pm_group_report(struct pm_outcome *outcome, const struct pm_group *group, bool all, uint32_t why)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];

		if (run->flags & PM_RUN_GAP)
			continue;
		for (uint32_t page = 0; page < run->npages; page++) {
			uint64_t addr = run->addr + pm_bytes(page), at = (addr - group->start) >> PM_PAGE_SHIFT;

			bool differs = group->differs[at / 64] >> at % 64 & 1;

			if (all || differs)
				pm_fail(outcome, addr, 1, why == PM_FAIL_DIFFERS && !differs ? PM_FAIL_WRITTEN : why);
			else
				outcome->result.merged++;
		}
	}
}

/* The whole of the group must be private memory of one protection that may be replaced: 0 or enum pm_failure. */
static bool keep_mapping;
static struct pm_vma kept; /* end 0: none */

void pm_group_keep_mapping(bool on)
{
	keep_mapping = on;
	kept.end = 0;
}

static int find_mapping(uint64_t at, struct pm_vma *out)
{
	int error = 0;

	if (!keep_mapping)
		return pm_vma_find(at, out);
	if (at < kept.start || at >= kept.end)
		error = pm_vma_find(at, &kept);
	*out = kept;
	return error;
}

uint32_t pm_group_check(struct pm_group *group)
{
	const struct pm_run *first = group->runs;
	int prot = group->prot;
	bool in_place = true;

	if (pm_is_own(group->start, group->end))
		return PM_FAIL_GONE;
	for (uint64_t at = group->start; at < group->end;) {
		struct pm_vma vma;

		if (find_mapping(at, &vma) || vma.start > at || vma.shared || !(vma.anonymous || vma.pool) ||
		    vma.prot & PROT_EXEC || (prot >= 0 && vma.prot != prot))
			return PM_FAIL_GONE;
		prot = vma.prot;
		in_place = in_place && vma.pool && vma.inode == inodes[first->segment] &&
			   vma.offset + (at - vma.start) == pm_bytes(first->pgoff) + (at - group->start);
		at = vma.end;
	}
	group->prot = prot;
	group->in_place = in_place;
	return 0;
}

bool pm_range_track(int pagemap, uint64_t start, uint64_t end)
{
	struct pm_scan_arg arg = {
		.flags = PM_SCAN_WP_MATCHING_ | PM_SCAN_CHECK_WPASYNC_,
		.start = start,
		.end = end,
		.category_mask = PM_IS_WRITTEN,
	};

	return pagemap >= 0 && pm_pagemap_scan(pagemap, &arg) >= 0;
}

/*
 * Compare the merge pages with the pool's, seen in the mapping aside or else in the view of the segment.  `direct`: nothing can take the memory away,
 * so that it can be looked at in place.
 */
static int compare(struct pm_group *group, bool direct)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];
		const char *pool = group->aside ? group->aside + (run->addr - group->start) :
						  views[run->segment] + pm_bytes(run->pgoff);

		if (run->flags & PM_RUN_GAP)
			continue;
		for (uint32_t page = 0; page < run->npages; page += BOUNCE_PAGES) {
			uint32_t n = run->npages - page < BOUNCE_PAGES ? run->npages - page : BOUNCE_PAGES;
			const unsigned char *mine = bounce;

			if (direct)
				mine = (const unsigned char *)(uintptr_t)(run->addr + pm_bytes(page));
			else if (pm_read_self(bounce, run->addr + pm_bytes(page), pm_bytes(n)))
				return -EFAULT;
			for (uint32_t k = 0; k < n; k++) {
				uint64_t at = ((run->addr - group->start) >> PM_PAGE_SHIFT) + page + k;

				if (memcmp(mine + pm_bytes(k), pool + pm_bytes(page + k), PM_PAGE_SIZE))
					group->differs[at / 64] |= 1ULL << at % 64;
			}
		}
	}
	return 0;
}

const char *pm_group_view(const struct pm_group *group)
{
	return views[group->runs->segment] + pm_bytes(group->runs->pgoff);
}

static uint32_t count_differs(const struct pm_group *group)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < PM_GROUP_PAGES / 64; i++)
		n += (uint32_t)__builtin_popcountll(group->differs[i]);
	return n;
}

bool pm_group_equals(struct pm_group *group, const int *fds)
{
	/* Of scattered pages each would cost a fault in the view; copying one costs a third of that. */
	if (group->npages <= BOUNCE_PAGES / 4) {
		const struct pm_run *first = group->runs;

		if (pread(fds[first->segment], bounce, pm_bytes(group->npages), (off_t)pm_bytes(first->pgoff)) != (ssize_t)pm_bytes(group->npages))
			return false;
		for (uint32_t i = 0; i < group->nruns; i++) {
			const struct pm_run *run = &group->runs[i];

			if (!(run->flags & PM_RUN_GAP) &&
			    memcmp((const void *)(uintptr_t)run->addr, bounce + (run->addr - group->start), pm_bytes(run->npages)))
				return false;
		}
		return true;
	}
	return !compare(group, true) && !count_differs(group);
}

/* Copy one page of the group into the mapping aside. */
static int copy_aside(struct pm_group *group, uint64_t addr, bool direct)
{
	char *to = group->aside + (addr - group->start);
	const void *from = (const void *)(uintptr_t)addr;

	if (!direct) {
		if (pm_read_self(bounce, addr, PM_PAGE_SIZE))
			return -EFAULT;
		from = bounce;
	}
	pm_uffd_fill(to, from, PM_PAGE_SIZE);
	return 0;
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
static int map_aside(struct pm_group *group, const int *fds)
{
	const struct pm_run *first = group->runs;

	group->aside = pm_mmap(NULL, group->end - group->start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
			       fds[first->segment], pm_bytes(first->pgoff));
	if (group->aside == MAP_FAILED) {
		group->aside = NULL;
		return -ENOMEM;
	}
	return 0;
}

/* Gap pages and pages that differ become private copies in it. */
static int fill_aside(struct pm_group *group, bool direct)
{
	uint64_t start = (uintptr_t)group->aside, end = start + (group->end - group->start);
	int error = 0;

	if (group->nruns > 1)
		pm_uffd_fill_begin(start, end);

	for (uint32_t i = 0; i < group->nruns && !error; i++) {
		const struct pm_run *run = &group->runs[i];

		for (uint32_t page = 0; page < run->npages && !error; page++) {
			uint64_t addr = run->addr + pm_bytes(page), at = (addr - group->start) >> PM_PAGE_SHIFT;

			if (run->flags & PM_RUN_GAP || group->differs[at / 64] >> at % 64 & 1) {
				error = copy_aside(group, addr, direct);
				group->copies++;
			}
		}
	}
	pm_uffd_fill_end();
	return error;
}

/*
 * Write the pages to the segment, which nobody else has yet: what is mapped then is their content, without a comparison.  0 or enum pm_failure: there may be no
 * room for it.
 */
static uint32_t give(const struct pm_group *group, const int *fds)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];
		size_t length = pm_bytes(run->npages);

		if (!(run->flags & PM_RUN_GAP) &&
		    pwrite(fds[run->segment], (const void *)(uintptr_t)run->addr, length, (off_t)pm_bytes(run->pgoff)) != (ssize_t)length)
			return errno == EFAULT ? PM_FAIL_GONE : PM_FAIL_SYSTEM;
	}
	return 0;
}

/*
 * With its page tables filled, as after a comparison, the program meets no faults.  The kernel maps what there is of 16 pages at a time, which is less work than
 * MADV_POPULATE_READ does for each.  Only pages of the file are looked at: looking at a hole would fill it.
 */
static void fill_tables(const struct pm_group *group)
{
	uintptr_t start = (uintptr_t)group->aside, filled = start; /* up to here */

	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];
		uintptr_t at = start + (run->addr - group->start), end = at + pm_bytes(run->npages), from;

		for (at = at > filled ? at : filled; !(run->flags & PM_RUN_GAP) && at < end; at = filled) {
			(void)*(const volatile char *)at;
			from = at & ~(uintptr_t)(AROUND - 1);
			filled = (from > start ? from : start) + AROUND;
		}
	}
}

static uint32_t give_and_build(struct pm_group *group, const int *fds, bool direct)
{
	uint32_t why = give(group, fds);

	if (why)
		return why;
	if (map_aside(group, fds))
		return PM_FAIL_SYSTEM;
	if (fill_aside(group, direct))
		return PM_FAIL_GONE;
	fill_tables(group);
	return 0;
}

/* Compare and build: 0 or enum pm_failure. */
uint32_t pm_group_examine(struct pm_group *group, const int *fds, bool direct)
{
	bool has_gaps = group->nruns > 1;
	uint32_t different;

	if (group->give)
		return group->in_place ? PM_FAIL_GONE : give_and_build(group, fds, direct);

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
static uint32_t settle_writes(int pagemap, struct pm_group *group)
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
static int drop_copies(const struct pm_group *group)
{
	for (uint32_t i = 0; i < group->nruns; i++) {
		const struct pm_run *run = &group->runs[i];

		for (uint32_t page = 0; !(run->flags & PM_RUN_GAP) && page < run->npages; page++) {
			uint64_t addr = run->addr + pm_bytes(page), at = (addr - group->start) >> PM_PAGE_SHIFT;

			if (!(group->differs[at / 64] >> at % 64 & 1) &&
			    pm_madvise((void *)(uintptr_t)addr, PM_PAGE_SIZE, MADV_DONTNEED))
				return -errno;
		}
	}
	return 0;
}

/* Map: 0 or enum pm_failure.  The threads are stopped, or nobody may write. */
uint32_t pm_group_commit(int pagemap, struct pm_group *group, const int *fds, bool stopped)
{
	const struct pm_run *first = group->runs;
	size_t length = group->end - group->start;
	void *at = (void *)(uintptr_t)group->start;
	uint32_t why = stopped ? pm_group_check(group) : 0; /* behind the gate nothing has changed since it was looked at */

	if (why)
		return why;
	if (stopped && pm_freeze_holds_stack(group->start, group->end))
		return PM_FAIL_STACK;
	if (group->tracked)
		why = settle_writes(pagemap, group);
	else if (stopped)
		why = pm_group_examine(group, fds, true);
	if (why)
		return why;
	if (group->in_place)
		return drop_copies(group) ? PM_FAIL_SYSTEM : 0;
	if (!group->aside && !still_segment(first->segment, fds[first->segment])) /* the others are stopped */
		return PM_FAIL_SYSTEM;
	if (!group->aside)
		return pm_mmap(at, length, group->prot, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fds[first->segment],
			    pm_bytes(first->pgoff)) == MAP_FAILED ?
			       PM_FAIL_SYSTEM :
			       0;
	if (group->prot != (PROT_READ | PROT_WRITE) && pm_mprotect(group->aside, length, group->prot))
		return PM_FAIL_SYSTEM;
	if (pm_move(group->aside, length, at))
		return PM_FAIL_SYSTEM;
	group->aside = NULL;
	return 0;
}

/* Cut the next group off the runs, at a place where no gap is when it gets long: how many runs it takes. */
uint32_t pm_group_take(const struct pm_run *runs, uint32_t count, uint32_t window, struct pm_group *group)
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
	group->end = runs[n - 1].addr + pm_bytes(runs[n - 1].npages);
	group->npages = (uint32_t)((group->end - group->start) >> PM_PAGE_SHIFT);
	return n;
}

/*
 * A memfd with the pool's name, by which its mappings are known later, that can't shrink under us or be written any more: by nobody but the daemon, or by nobody.
 * One that we are to write is only ours and the daemon's as yet.
 */
static bool is_segment(int fd, bool to_write)
{
	static const int needed = F_SEAL_SHRINK | F_SEAL_GROW, closed = F_SEAL_FUTURE_WRITE | F_SEAL_WRITE;
	char path[48], target[sizeof(PM_POOL_PATH)] = "";
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || !(seals & closed) != to_write)
		return false;

	snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", fd);
	return (seals & needed) == needed && readlink(path, target, sizeof(target) - 1) > 0 &&
	       strcmp(target, PM_POOL_PATH) == 0;
}

int pm_views_map(const struct pm_request *request)
{
	for (uint32_t i = 0; i < request->nfds; i++) {
		struct stat status;

		if (fstat(request->fds[i], &status))
			return -errno;
		if (!is_segment(request->fds[i], request->give))
			return -EPERM;
		inodes[i] = status.st_ino;
		view_bytes[i] = (size_t)status.st_size;
		if (request->give) /* nothing is compared; and a file that is mapped shared can't be sealed */
			continue;
		views[i] = pm_mmap(NULL, view_bytes[i], PROT_READ, MAP_SHARED | MAP_NORESERVE, request->fds[i], 0);
		if (views[i] == MAP_FAILED) {
			views[i] = NULL;
			return -errno;
		}
		/* No other use than this: where a view goes, the kernel need not note for each page that it was used, which moves it to another list. */
		pm_madvise(views[i], view_bytes[i], MADV_RANDOM);
		if (!still_segment(i, request->fds[i]))
			return -EBADF;
	}
	for (uint32_t i = 0; i < request->count; i++) /* never beyond a segment's end: that would be SIGBUS */
		if (pm_bytes((uint64_t)request->runs[i].pgoff + request->runs[i].npages) > view_bytes[request->runs[i].segment])
			return -EINVAL;
	return 0;
}

bool pm_views_hold(const struct pm_request *request)
{
	if (pm_table_is_own())
		return true;
	for (uint32_t i = 0; i < request->nfds; i++)
		if (!still_segment(i, request->fds[i]))
			return false;
	return true;
}

void pm_views_unmap(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (views[i])
			pm_munmap(views[i], view_bytes[i]);
		views[i] = NULL;
	}
	pm_madvise(bounce, sizeof(bounce), MADV_DONTNEED); /* a guest takes little room */
}
