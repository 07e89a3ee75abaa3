/* SPDX-License-Identifier: MIT */
#include "track.h"

#include "page.h"

#include <errno.h>
#include <linux/userfaultfd.h>

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

int pm_track_query(struct pm_track *track, uint64_t start, uint64_t end, uint64_t max_pages, struct pm_page_region *spans,
		   size_t cap, uint64_t *walked)
{
	struct pm_scan_arg arg = {
		.start = start,
		.end = end,
		.vec = (uintptr_t)spans,
		.vec_len = cap,
		.max_pages = max_pages,
		.category_anyof_mask = PM_IS_PRESENT | PM_IS_SWAPPED,
		.return_mask = PM_IS_WPALLOWED | PM_IS_WRITTEN | PM_IS_FILE | PM_IS_PRESENT | PM_IS_SWAPPED |
			       PM_IS_PFNZERO | PM_IS_HUGE,
	};
	int n;

	*walked = start;
	if (!track->can_scan)
		return query_by_reading(track, start, end, max_pages, spans, cap, walked);
	n = scan(track->pagemap_fd, &arg);
	if (n >= 0)
		*walked = arg.walk_end > start && arg.walk_end <= end ? arg.walk_end : end;
	return n;
}

int pm_track_protect(struct pm_track *track, uint64_t start, uint64_t end)
{
	struct pm_scan_arg arg = {
		.flags = PM_SCAN_WP_MATCHING_ | PM_SCAN_CHECK_WPASYNC_,
		.start = start,
		.end = end,
		.category_mask = PM_IS_WRITTEN | PM_IS_PRESENT,
	};
	int n = scan(track->pagemap_fd, &arg);

	return n < 0 ? n : 0;
}

int pm_track_register(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_register arg = {
		.range = {.start = start, .len = end - start},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
}

bool pm_track_exclusive(struct pm_track *track, uint64_t address)
{
	uint64_t entry;

	if (track->pagemap_fd < 0 ||
	    pread(track->pagemap_fd, &entry, 8, (off_t)(address >> PM_PAGE_SHIFT) * 8) != 8)
		return false;
	return entry & PAGEMAP_EXCLUSIVE;
}
