/* SPDX-License-Identifier: MIT */
/* What the kernel says about pages without reading them: present, file, swapped, written since the last look. */
#ifndef PM_TRACK_H
#define PM_TRACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys.h"


struct pm_track {
	int pagemap_fd;
	bool can_scan; /* PAGEMAP_SCAN works here */
};

void pm_track_init(struct pm_track *track, int pagemap_fd);

/*
 * Which pages a query lists: all that are present or swapped, or only private ones that were written since the last look.  Where only anonymous memory is mapped the
 * kernel need not look at each page's own record to tell it from a file's, which takes as long as the rest.
 */
enum pm_query { PM_QUERY_ALL, PM_QUERY_ANONYMOUS, PM_QUERY_WRITTEN };

/*
 * Spans of present or swapped pages in [start, end), at most `max_pages` pages (0: no limit) in at most `cap` spans.
 * Returns the number of spans and in *walked where the look ended, or -errno (-ESRCH: the memory is gone).
 */
int pm_track_query(struct pm_track *track, enum pm_query query, uint64_t start, uint64_t end, uint64_t max_pages, struct pm_page_region *spans,
		   size_t cap, uint64_t *walked);

/* Write-protect written pages of a range so that the next write is noticed; no huge ones. */
enum pm_protect { PM_PROTECT_PRIVATE, PM_PROTECT_ANONYMOUS /* nothing else is there */, PM_PROTECT_POOL /* all */ };
int pm_track_protect(struct pm_track *track, enum pm_protect what, uint64_t start, uint64_t end);

/* Have writes to [start, end) tracked through a userfaultfd with WP_ASYNC.  0 or -errno. */
int pm_track_register(int uffd, uint64_t start, uint64_t end);

/*
 * Which of `n` pages from `address` on are mapped by this process alone, by bit 56 of /proc/PID/pagemap; where that can't
 * be read, or pages are not there, they count as such.
 */
void pm_track_exclusive(struct pm_track *track, uint64_t address, size_t n, bool *exclusive);

#endif
