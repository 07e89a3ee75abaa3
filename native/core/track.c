/* SPDX-License-Identifier: MIT */
#include "track.h"

#include "page.h"

#include <errno.h>
#include <linux/userfaultfd.h>

enum {
	RETURN_MASK = PM_IS_WPALLOWED | PM_IS_WRITTEN | PM_IS_FILE | PM_IS_PRESENT | PM_IS_SWAPPED | PM_IS_PFNZERO | PM_IS_HUGE,
	ROUGH_SPANS = 16,
};

static const uint64_t PAGEMAP_PRESENT = 1ull << 63;
static const uint64_t PAGEMAP_SWAPPED = 1ull << 62;
static const uint64_t PAGEMAP_FILE = 1ull << 61;
static const uint64_t PAGEMAP_EXCLUSIVE = 1ull << 56;

static int scan(int fd, struct pm_scan_arg *arg)
{
	long n;

	do {
		n = pm_pagemap_scan(fd, arg);
	} while (n == -EINTR);
	return (int)n;
}

void pm_track_init(struct pm_track *track, int pagemap_fd)
{
	struct pm_scan_arg arg = {.category_anyof_mask = PM_IS_PRESENT, .return_mask = PM_IS_PRESENT};
	int err = pagemap_fd < 0 ? -EBADF : scan(pagemap_fd, &arg);

	/* An empty range is refused with EINVAL, or is nothing; a kernel without the call says ENOTTY. */
	track->pagemap_fd = pagemap_fd;
	track->can_scan = err != -EBADF && err != -ENOTTY && err != -ENOSYS && err != -EPERM;
}

static int query_by_reading(struct pm_track *track, uint64_t start, uint64_t end, uint64_t max_pages,
			    struct pm_page_region *spans, size_t cap, uint64_t *walked)
{
	uint64_t entries[1024], found = 0, at = start;
	size_t n = 0;

	if (track->pagemap_fd < 0)
		return -EBADF;
	while (at < end) {
		size_t want = (end - at) >> PM_PAGE_SHIFT;
		ssize_t got;

		if (want > 1024)
			want = 1024;
		got = pread(track->pagemap_fd, entries, want * 8, (off_t)(at >> PM_PAGE_SHIFT) * 8);
		if (got < 0)
			return -errno;
		if (got == 0)
			return n ? (int)n : -ESRCH;
		for (size_t i = 0; i < (size_t)got / 8; i++, at += PM_PAGE_SIZE) {
			uint64_t is = PM_IS_WRITTEN;

			if (!(entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)))
				continue;
			if (n == cap && (spans[n - 1].end != at))
				goto out;
			if (max_pages && found == max_pages)
				goto out;
			is |= entries[i] & PAGEMAP_PRESENT ? PM_IS_PRESENT : PM_IS_SWAPPED;
			if (entries[i] & PAGEMAP_FILE)
				is |= PM_IS_FILE;
			if (n && spans[n - 1].end == at && spans[n - 1].categories == is) {
				spans[n - 1].end += PM_PAGE_SIZE;
			} else {
				if (n == cap)
					goto out;
				spans[n++] = (struct pm_page_region){at, at + PM_PAGE_SIZE, is};
			}
			found++;
		}
	}
out:
	*walked = at;
	return (int)n;
}

/* Written pages, private and present, in a range of which some are. */
static int query_written_in(struct pm_track *track, uint64_t start, uint64_t end, uint64_t max_pages,
			    struct pm_page_region *spans, size_t cap, uint64_t *walked)
{
	struct pm_scan_arg arg = {
		.start = start,
		.end = end,
		.vec = (uintptr_t)spans,
		.vec_len = cap,
		.max_pages = max_pages,
		.category_mask = PM_IS_PRESENT | PM_IS_WRITTEN | PM_IS_FILE | PM_IS_PFNZERO,
		.category_inverted = PM_IS_FILE | PM_IS_PFNZERO,
		.return_mask = RETURN_MASK,
	};
	int n = scan(track->pagemap_fd, &arg);

	if (n >= 0)
		*walked = arg.walk_end > start && arg.walk_end <= end ? arg.walk_end : end;
	return n;
}

/*
 * Asked for nothing but PAGE_IS_WRITTEN the kernel reads page table entries alone, which is several times as fast as with
 * any category that depends on the page.  It lists holes too; a second query sorts them out.
 */
static int query_written(struct pm_track *track, uint64_t start, uint64_t end, uint64_t max_pages,
			 struct pm_page_region *spans, size_t cap, uint64_t *walked)
{
	struct pm_page_region rough[ROUGH_SPANS];
	size_t n = 0;

	for (uint64_t at = start; at < end;) {
		struct pm_scan_arg arg = {
			.start = at,
			.end = end,
			.vec = (uintptr_t)rough,
			.vec_len = ROUGH_SPANS,
			.category_mask = PM_IS_WRITTEN,
			.return_mask = PM_IS_WRITTEN,
		};
		int found = scan(track->pagemap_fd, &arg);
		uint64_t next = arg.walk_end > at && arg.walk_end < end ? arg.walk_end : end, to;

		if (found < 0)
			return found;
		if (found == ROUGH_SPANS) { /* so scattered that one query for all between them is cheaper */
			rough[0].end = rough[found - 1].end;
			found = 1;
		}
		for (int i = 0; i < found; i++) {
			int more = query_written_in(track, rough[i].start, rough[i].end, max_pages, spans + n, cap - n, &to);

			if (more < 0)
				return more;
			for (int k = 0; k < more; k++)
				max_pages -= (spans[n + (size_t)k].end - spans[n + (size_t)k].start) >> PM_PAGE_SHIFT;
			n += (size_t)more;
			if (to < rough[i].end || n == cap || !max_pages) {
				*walked = to;
				return (int)n;
			}
		}
		at = next;
	}
	*walked = end;
	return (int)n;
}

int pm_track_query(struct pm_track *track, enum pm_query query, uint64_t start, uint64_t end, uint64_t max_pages, struct pm_page_region *spans,
		   size_t cap, uint64_t *walked)
{
	struct pm_scan_arg arg = {
		.start = start,
		.end = end,
		.vec = (uintptr_t)spans,
		.vec_len = cap,
		.max_pages = max_pages,
		.category_anyof_mask = PM_IS_PRESENT | PM_IS_SWAPPED,
		.return_mask = query == PM_QUERY_ANONYMOUS ? RETURN_MASK & ~PM_IS_FILE : RETURN_MASK,
	};
	int n;

	*walked = start;
	if (!track->can_scan)
		return query_by_reading(track, start, end, max_pages, spans, cap, walked);
	if (query == PM_QUERY_WRITTEN)
		return query_written(track, start, end, max_pages, spans, cap, walked);
	n = scan(track->pagemap_fd, &arg);
	if (n >= 0)
		*walked = arg.walk_end > start && arg.walk_end <= end ? arg.walk_end : end;
	return n;
}

int pm_track_protect(struct pm_track *track, enum pm_protect what, uint64_t start, uint64_t end)
{
	const uint64_t file = what == PM_PROTECT_ANONYMOUS ? 0 : PM_IS_FILE;
	struct pm_page_region done[512];
	struct pm_scan_arg arg = {
		.flags = PM_SCAN_WP_MATCHING_,
		.end = end,
		/* Without a place for its answer the call would protect everything, and fill holes with markers. */
		.vec = (uintptr_t)done,
		.vec_len = sizeof(done) / sizeof(done[0]),
		.category_mask = PM_IS_WPALLOWED | PM_IS_WRITTEN | PM_IS_PRESENT | PM_IS_PFNZERO | PM_IS_HUGE | file,
		.category_inverted = PM_IS_PFNZERO | PM_IS_HUGE | (what == PM_PROTECT_POOL ? 0 : file),
		.return_mask = PM_IS_WRITTEN,
	};

	for (uint64_t at = start; at < end; at = arg.walk_end) {
		int n;

		arg.start = at;
		n = scan(track->pagemap_fd, &arg);
		if (n < 0)
			return n;
		if (arg.walk_end <= at)
			break;
	}
	return 0;
}

int pm_track_register(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register arg = {
		.range = {.start = start, .len = end - start},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
}

void pm_track_exclusive(struct pm_track *track, uint64_t address, size_t n, bool *exclusive)
{
	uint64_t entries[256];

	for (size_t at = 0, got; at < n; at += got) {
		size_t want = n - at < 256 ? n - at : 256;
		ssize_t bytes = -1;

		if (track->pagemap_fd >= 0)
			bytes = pread(track->pagemap_fd, entries, want * 8, (off_t)((address >> PM_PAGE_SHIFT) + at) * 8);
		got = bytes > 0 ? (size_t)bytes / 8 : 0;
		for (size_t i = 0; i < got; i++)
			exclusive[at + i] = (entries[i] & (PAGEMAP_EXCLUSIVE | PAGEMAP_FILE)) ||
					    !(entries[i] & PAGEMAP_PRESENT);
		if (!got) {
			for (size_t i = at; i < n; i++)
				exclusive[i] = true;
			return;
		}
	}
}
