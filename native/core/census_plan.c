// SPDX-License-Identifier: MIT
/* Census: what is present, and the windows of address space that are handed to the threads. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "census_impl.h"

void pm_census_fail(struct pm_space *s, int error)
{
	int state = error == ESRCH ? PM_SPACE_GONE : error == EPERM || error == EACCES ? PM_SPACE_REFUSED : PM_SPACE_FAILED;

	atomic_store(&s->error, error);
	atomic_store(&s->state, state);
}

/* PAGEMAP_SCAN finds nothing, without an error, in memory that is gone; reading the pagemap tells. */
bool pm_census_still_there(const struct pm_space *s, uint64_t page)
{
	uint64_t entry;

	return !s->pid || pread(s->fd, &entry, sizeof(entry), (off_t)(page * 8)) != 0;
}

/*
 * Ranges of present anonymous pages in [*from, end), pages; *from moves on, though not to the end in one call, as
 * the program waits meanwhile where it maps or unmaps.  Returns how many, maybe none, or -errno.
 * -ESRCH: the memory is gone (exit or exec).
 */
int pm_census_extents(struct pm_census *c, struct pm_space *s, uint64_t *from, uint64_t end, struct pm_page_region *out,
			unsigned int room, uint64_t *map)
{
	unsigned int n = 0;
	ssize_t got;

	if (end - *from > PM_SCAN_PAGES)
		end = *from + PM_SCAN_PAGES;
	if (c->scan_works) {
		struct pm_scan_arg arg = {
			.start = *from << PM_PAGE_SHIFT,
			.end = end << PM_PAGE_SHIFT,
			.vec = (uintptr_t)out,
			.vec_len = room,
			.category_inverted = PM_IS_FILE | PM_IS_PFNZERO,
			.category_mask = PM_IS_PRESENT | PM_IS_FILE | PM_IS_PFNZERO,
			.return_mask = PM_IS_HUGE,
		};
		long found = pm_pagemap_scan(s->fd, &arg);

		if (found >= 0) {
			*from = arg.walk_end >> PM_PAGE_SHIFT;
			return (int)found;
		}
		if (found == -EINTR)
			return 0;
		if (found == -ESRCH)
			return -ESRCH;
		c->scan_works = false; /* before 6.7: every thread finds out by itself, with the same result */
	}
	while (*from < end && n < room) {
		uint64_t want = end - *from < PM_PAGEMAP_BLOCK ? end - *from : PM_PAGEMAP_BLOCK;
		size_t i;

		got = pread(s->fd, map, want * 8, (off_t)(*from * 8));
		if (got < 0)
			return -errno;
		if (got == 0)
			return -ESRCH;
		for (i = 0; i < (size_t)got / 8; i++) {
			if ((map[i] & (PAGEMAP_PRESENT | PAGEMAP_FILE)) != PAGEMAP_PRESENT)
				continue;
			if (n && out[n - 1].end == (*from + i) << PM_PAGE_SHIFT) {
				out[n - 1].end += PM_PAGE_SIZE;
			} else if (n == room) {
				break;
			} else {
				out[n].start = (*from + i) << PM_PAGE_SHIFT;
				out[n].end = out[n].start + PM_PAGE_SIZE;
				out[n++].categories = 0;
			}
		}
		*from += i;
	}
	return (int)n;
}

static int add_window(struct pm_census *c, uint64_t start, uint64_t end, uint32_t region)
{
	int error = pm_census_make_room((void **)&c->windows, &c->windows_room, c->nwindows, sizeof(*c->windows));

	if (error)
		return error;
	c->windows[c->nwindows++] = (struct pm_window){ .start = start, .pages = (uint32_t)(end - start), .region = region };
	return 0;
}

/* Windows over a range in which something is present, none twice. */
static int cover(struct pm_census *c, const struct pm_region *r, uint32_t number, uint64_t from, uint64_t to, uint64_t *covered)
{
	uint64_t pages = (uint64_t)PM_WINDOW_PAGES * (c->sample < PM_WINDOW_SCALE_MAX ? c->sample : PM_WINDOW_SCALE_MAX);

	if (from < *covered)
		from = *covered;
	while (from < to) {
		uint64_t start = from / pages * pages, end = start + pages;
		int error;

		if (start < r->start)
			start = r->start;
		if (end > r->end)
			end = r->end;
		error = add_window(c, start, end, number);
		if (error)
			return error;
		*covered = from = end;
	}
	return 0;
}

/* The next part of a file that is no hole: from *at, which moves on, to *end; false where only holes are left. */
bool pm_census_next_data(const struct pm_space *s, const struct pm_region *r, uint64_t *at, uint64_t *end)
{
	off_t base = (off_t)r->offset - (off_t)(r->start << PM_PAGE_SHIFT);
	off_t data = lseek(s->fd, base + (off_t)(*at << PM_PAGE_SHIFT), SEEK_DATA), hole;

	*end = r->end;
	if (data < 0)
		return errno != ENXIO; /* no such thing here (a block device): all of it is data */
	hole = lseek(s->fd, data, SEEK_HOLE);
	*at = (uint64_t)(data - base) >> PM_PAGE_SHIFT;
	if (hole >= 0 && (uint64_t)(hole - base + PM_PAGE_SIZE - 1) >> PM_PAGE_SHIFT < r->end)
		*end = (uint64_t)(hole - base + PM_PAGE_SIZE - 1) >> PM_PAGE_SHIFT;
	return *at < *end;
}

int pm_census_plan_region(struct pm_census *c, uint32_t number, struct pm_reader *rd)
{
	struct pm_region *r = &c->regions[number];
	struct pm_space *s = &c->spaces[r->space];
	uint64_t at = r->start, covered = 0, total = 0;

	if (!pm_census_still_there(s, at)) {
		pm_census_fail(s, ESRCH);
		return 0;
	}
	while (at < r->end && !atomic_load(&c->cancelled)) {
		int i, error, n;

		if (!s->pid) { /* a file: holes hold nothing */
			uint64_t from = at, to;

			if (!pm_census_next_data(s, r, &from, &to))
				break;
			total += to - from;
			error = cover(c, r, number, from, to, &covered);
			if (error)
				return error;
			at = to;
			continue;
		}
		n = pm_census_extents(c, s, &at, r->end, rd->extent, PM_EXTENTS, rd->map);
		if (n < 0) {
			pm_census_fail(s, -n);
			return 0;
		}
		for (i = 0; i < n; i++) {
			uint64_t from = rd->extent[i].start >> PM_PAGE_SHIFT, to = rd->extent[i].end >> PM_PAGE_SHIFT;

			total += to - from;
			error = cover(c, r, number, from, to, &covered);
			if (error)
				return error;
		}
	}
	atomic_fetch_add(&c->total, total);
	return 0;
}
