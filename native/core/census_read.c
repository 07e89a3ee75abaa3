// SPDX-License-Identifier: MIT
/* Census: reading.  Windows of address space are handed to the threads; each keeps to pages that are present. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "census_impl.h"
#include "page.h"
#include "sys.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FILE (1ull << 61)
#define PAGEMAP_EXCLUSIVE (1ull << 56)
#define PAGEMAP_PFN ((1ull << 55) - 1)
#define KPF_KSM_BIT 21

enum {
	CHUNK = 128,		/* pages a call: 512 KiB, which stays in the second-level cache */
	WINDOW_PAGES = 4096,	/* what a thread takes at a time */
	WINDOW_SCALE_MAX = 16,	/* ... times this when sampling, so that segments stay few beside records */
	EXTENTS = 256,
	PAGEMAP_BLOCK = 4096,	/* entries read at a time */
};

struct reader {
	struct pm_census *c;
	uint8_t *buffer;
	uint64_t page[CHUNK];
	uint32_t flag[CHUNK];
	bool common[CHUNK]; /* mapped by others, too: see read_pages() */
	unsigned int n;	    /* pages in the chunk */
	uint64_t *hash; /* records of this window */
	uint32_t *pos;
	uint32_t count;
	struct pm_census_region_info info; /* of this window */
	uint64_t zero_frames;
	uint64_t map[PAGEMAP_BLOCK];
	struct pm_page_region extent[EXTENTS];
};

static void fail_space(struct pm_space *s, int error)
{
	int state = error == ESRCH ? PM_SPACE_GONE : error == EPERM || error == EACCES ? PM_SPACE_REFUSED : PM_SPACE_FAILED;

	atomic_store(&s->error, error);
	atomic_store(&s->state, state);
}

/* ---- what is present ---- */

/* PAGEMAP_SCAN finds nothing, without an error, in memory that is gone; reading the pagemap tells. */
static bool still_there(const struct pm_space *s, uint64_t page)
{
	uint64_t entry;

	return !s->pid || pread(s->fd, &entry, sizeof(entry), (off_t)(page * 8)) != 0;
}

/*
 * Ranges of present anonymous pages in [*from, end), pages; *from moves on.  Returns how many, or -errno.
 * -ESRCH: the memory is gone (exit or exec).
 */
static int scan_extents(struct pm_census *c, struct pm_space *s, uint64_t *from, uint64_t end, struct pm_page_region *out,
			unsigned int room, uint64_t *map)
{
	unsigned int n = 0;
	ssize_t got;

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
		uint64_t want = end - *from < PAGEMAP_BLOCK ? end - *from : PAGEMAP_BLOCK;
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
	uint64_t pages = (uint64_t)WINDOW_PAGES * (c->sample < WINDOW_SCALE_MAX ? c->sample : WINDOW_SCALE_MAX);

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
static bool next_data(const struct pm_space *s, const struct pm_region *r, uint64_t *at, uint64_t *end)
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

static int plan_region(struct pm_census *c, uint32_t number, struct reader *rd)
{
	struct pm_region *r = &c->regions[number];
	struct pm_space *s = &c->spaces[r->space];
	uint64_t at = r->start, covered = 0, total = 0;

	if (!still_there(s, at)) {
		fail_space(s, ESRCH);
		return 0;
	}
	while (at < r->end && !atomic_load(&c->cancelled)) {
		int i, error, n;

		if (!s->pid) { /* a file: holes hold nothing */
			uint64_t from = at, to;

			if (!next_data(s, r, &from, &to))
				break;
			total += to - from;
			error = cover(c, r, number, from, to, &covered);
			if (error)
				return error;
			at = to;
			continue;
		}
		n = scan_extents(c, s, &at, r->end, rd->extent, EXTENTS, rd->map);
		if (n < 0) {
			fail_space(s, -n);
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

/* ---- reading and hashing ---- */

/* Whether this is not the first mapping of its frame that was seen. */
static bool seen_before(struct pm_census *c, uint64_t entry)
{
	uint64_t pfn = entry & PAGEMAP_PFN, bit;

	if (entry & PAGEMAP_EXCLUSIVE)
		return false;
	if (!pfn) { /* frame numbers need CAP_SYS_ADMIN */
		c->frames_known = false;
		return true;
	}
	if (!c->frames || pfn >= PM_FRAMES_MAX)
		return false;
	bit = 1ull << (pfn % 64);
	return atomic_fetch_or_explicit(&c->frames[pfn / 64], bit, memory_order_relaxed) & bit;
}

static bool is_merged_now(struct pm_census *c, uint64_t entry)
{
	uint64_t flags = 0;

	if (!c->ksm_active || entry & PAGEMAP_EXCLUSIVE || !(entry & PAGEMAP_PFN))
		return false;
	if (pread(c->kpageflags_fd, &flags, 8, (off_t)((entry & PAGEMAP_PFN) * 8)) != 8)
		return false;
	return flags >> KPF_KSM_BIT & 1;
}

/* By content, so that equal pages are kept or left together; the factor makes each salt another choice. */
static bool is_sampled(const struct pm_census *c, uint64_t hash)
{
	return (uint32_t)((hash ^ c->salt) * 0x9e3779b97f4a7c15u >> 32) <= c->threshold;
}

static void take_page(struct reader *rd, const uint8_t *bytes, uint64_t position, uint32_t flag)
{
	struct pm_census *c = rd->c;
	uint64_t hash = pm_page_hash(bytes);

	rd->info.present++;
	rd->info.huge += !!(flag & PM_REC_HUGE);
	if (hash == c->zero_hash) {
		rd->info.zero++;
		rd->zero_frames += !(flag & PM_REC_ALIAS);
		if (c->sample > 1)
			return; /* counted, all of them, rather than sampled */
		flag |= PM_REC_ZERO;
	} else if (c->sample > 1 && !is_sampled(c, hash)) {
		return;
	}
	rd->hash[rd->count] = hash;
	rd->pos[rd->count++] = (uint32_t)position | flag;
}

/* The next pages that can be had by one call, from `done` on; bytes read, or -errno. */
static ssize_t read_run(const struct pm_space *s, uint64_t file_base, uint8_t *buffer, const uint64_t *page, const bool *common,
			unsigned int done, unsigned int n)
{
	uint8_t *to = buffer + (size_t)done * PM_PAGE_SIZE;
	bool by_file = !s->pid || (common[done] && s->mem_fd >= 0);
	struct iovec remote[CHUNK], local;
	unsigned int i, count = 0;
	ssize_t r;

	if (by_file) {
		for (i = done + 1; i < n && page[i] == page[i - 1] + 1 && (!s->pid || common[i]); i++)
			;
		r = pread(s->pid ? s->mem_fd : s->fd, to, (size_t)(i - done) * PM_PAGE_SIZE,
			  (off_t)((s->pid ? 0 : file_base) + (page[done] << PM_PAGE_SHIFT)));
		return r < 0 ? -errno : r;
	}
	for (i = done; i < n && (!common[i] || s->mem_fd < 0); i++) {
		if (count && page[i] == page[i - 1] + 1) {
			remote[count - 1].iov_len += PM_PAGE_SIZE;
			continue;
		}
		remote[count].iov_base = (void *)(uintptr_t)(page[i] << PM_PAGE_SHIFT);
		remote[count++].iov_len = PM_PAGE_SIZE;
	}
	local.iov_base = to;
	local.iov_len = (size_t)(i - done) * PM_PAGE_SIZE;
	r = process_vm_readv(s->pid, &local, 1, remote, count, 0);
	return r < 0 ? -errno : r;
}

/*
 * Read pages into the buffer, page[i] to slot i; got[i]: whether it is there.  -errno when the space can't be read.
 *
 * process_vm_readv() pins what it reads, and pinning gives a process a copy of its own of each anonymous page that it
 * shares by fork or by KSM (mm/gup.c: gup_must_unshare()): a look would cost the target memory.  So pages that are
 * mapped more than once (`common`) are read through /proc/PID/mem, which takes twice as long and changes nothing.
 */
static int read_pages(const struct pm_space *s, uint64_t file_base, uint8_t *buffer, const uint64_t *page, const bool *common,
		      unsigned int n, bool *got)
{
	unsigned int done = 0;

	memset(got, 0, n);
	while (done < n) {
		ssize_t r = read_run(s, file_base, buffer, page, common, done, n);

		if (r == -EINTR)
			continue;
		if (r < 0 && r != -EFAULT && r != -EIO)
			return (int)r;
		if (r < (ssize_t)PM_PAGE_SIZE) {
			done++; /* this one could not be read */
			continue;
		}
		memset(got + done, 1, (size_t)r / PM_PAGE_SIZE);
		done += (unsigned int)(r / PM_PAGE_SIZE);
	}
	return 0;
}

static int flush_chunk(struct reader *rd, const struct pm_region *r, uint64_t base)
{
	struct pm_space *s = &rd->c->spaces[r->space];
	uint64_t file_base = r->offset - (r->start << PM_PAGE_SHIFT);
	bool got[CHUNK];
	unsigned int i;
	int error = read_pages(s, file_base, rd->buffer, rd->page, rd->common, rd->n, got);

	if (error)
		return error;
	for (i = 0; i < rd->n; i++) {
		if (got[i])
			take_page(rd, rd->buffer + (size_t)i * PM_PAGE_SIZE, rd->page[i] - base, rd->flag[i]);
		else
			rd->info.lost++;
	}
	atomic_fetch_add_explicit(&rd->c->done, rd->n, memory_order_relaxed);
	rd->n = 0;
	return 0;
}

static int push_page(struct reader *rd, const struct pm_region *r, uint64_t base, uint64_t page, uint32_t flag, bool common)
{
	rd->page[rd->n] = page;
	rd->common[rd->n] = common;
	rd->flag[rd->n++] = flag;
	return rd->n == CHUNK ? flush_chunk(rd, r, base) : 0;
}

static int read_extent(struct reader *rd, const struct pm_region *r, uint64_t base, const struct pm_page_region *e)
{
	struct pm_census *c = rd->c;
	uint64_t at = e->start >> PM_PAGE_SHIFT, end = e->end >> PM_PAGE_SHIFT;
	bool huge = e->categories & PM_IS_HUGE;
	uint64_t map[512];

	while (at < end) {
		uint64_t want = end - at < 512 ? end - at : 512;
		ssize_t got = pread(c->spaces[r->space].fd, map, want * 8, (off_t)(at * 8));
		size_t i;

		if (got <= 0)
			return got < 0 ? -errno : -ESRCH;
		for (i = 0; i < (size_t)got / 8; i++) {
			uint32_t flag = huge ? PM_REC_HUGE : 0;
			int error;

			if ((map[i] & (PAGEMAP_PRESENT | PAGEMAP_FILE)) != PAGEMAP_PRESENT)
				continue;
			if (is_merged_now(c, map[i]))
				flag |= PM_REC_KSM;
			if (seen_before(c, map[i]))
				flag |= PM_REC_ALIAS;
			error = push_page(rd, r, base, at + i, flag, !(map[i] & PAGEMAP_EXCLUSIVE));
			if (error)
				return error;
		}
		at += i;
	}
	return 0;
}

static int read_window(struct reader *rd, const struct pm_window *w)
{
	struct pm_census *c = rd->c;
	struct pm_region *r = &c->regions[w->region];
	struct pm_space *s = &c->spaces[r->space];
	uint64_t at = w->start, end = w->start + w->pages;
	int error = 0;

	while (at < end && !error) {
		int i, n;

		if (!s->pid) {
			uint64_t hole;

			if (!next_data(s, r, &at, &hole))
				break;
			for (; at < end && at < hole && !error; at++)
				error = push_page(rd, r, w->start, at, 0, false);
			continue;
		}
		n = scan_extents(c, s, &at, end, rd->extent, EXTENTS, rd->map);
		if (n < 0)
			return n;
		for (i = 0; i < n && !error; i++)
			error = read_extent(rd, r, w->start, &rd->extent[i]);
	}
	if (!error && rd->n)
		error = flush_chunk(rd, r, w->start);
	return error ? error : still_there(s, w->start) ? 0 : -ESRCH;
}

/* Hand a window's records over. */
static int put_records(struct reader *rd, const struct pm_window *w)
{
	struct pm_census *c = rd->c;
	struct pm_census_region_info *info = &c->regions[w->region].info;
	uint64_t first = 0;
	int error = 0;

	pthread_mutex_lock(&c->lock);
	if (rd->count) {
		error = pm_census_make_room((void **)&c->segments, &c->segments_room, c->nsegments, sizeof(*c->segments));
		if (!error && c->held + rd->count > c->room)
			error = -E2BIG; /* a target that grows faster than it is read */
		if (!error) {
			first = c->held;
			c->held += rd->count;
			c->segments[c->nsegments++] = (struct pm_segment){
				.base = w->start, .first = first, .count = rd->count, .region = w->region,
			};
		}
	}
	if (!error) {
		info->present += rd->info.present;
		info->zero += rd->info.zero;
		info->huge += rd->info.huge;
		info->lost += rd->info.lost;
		info->held += rd->count;
	}
	pthread_mutex_unlock(&c->lock);
	if (error)
		return error;
	memcpy(c->hash + first, rd->hash, rd->count * sizeof(*rd->hash));
	memcpy(c->pos + first, rd->pos, rd->count * sizeof(*rd->pos));
	return 0;
}

static int reader_init(struct reader *rd, struct pm_census *c)
{
	size_t records = (size_t)WINDOW_PAGES * (c->sample < WINDOW_SCALE_MAX ? c->sample : WINDOW_SCALE_MAX);

	memset(rd, 0, sizeof(*rd));
	rd->c = c;
	rd->hash = pm_census_reserve(records * sizeof(*rd->hash));
	rd->pos = pm_census_reserve(records * sizeof(*rd->pos));
	rd->buffer = aligned_alloc(PM_PAGE_SIZE, (size_t)CHUNK * PM_PAGE_SIZE);
	return rd->hash && rd->pos && rd->buffer ? 0 : -ENOMEM;
}

static void reader_deinit(struct reader *rd)
{
	size_t records = (size_t)WINDOW_PAGES * (rd->c->sample < WINDOW_SCALE_MAX ? rd->c->sample : WINDOW_SCALE_MAX);

	if (rd->hash)
		munmap(rd->hash, records * sizeof(*rd->hash));
	if (rd->pos)
		munmap(rd->pos, records * sizeof(*rd->pos));
	free(rd->buffer);
}

static struct reader *reader_create(struct pm_census *c)
{
	struct reader *rd = malloc(sizeof(*rd));

	if (rd && reader_init(rd, c)) {
		reader_deinit(rd);
		free(rd);
		rd = NULL;
	}
	if (!rd)
		atomic_store(&c->error, -ENOMEM);
	return rd;
}

static void reader_destroy(struct reader *rd)
{
	reader_deinit(rd);
	free(rd);
}

static void *read_thread(void *arg)
{
	struct pm_census *c = arg;
	struct reader *rd = reader_create(c);

	if (!rd)
		return NULL;
	while (!atomic_load(&c->cancelled) && !atomic_load(&c->error)) {
		uint64_t i = atomic_fetch_add(&c->next, 1);
		struct pm_space *s;
		int error;

		if (i >= c->nwindows)
			break;
		s = &c->spaces[c->regions[c->windows[i].region].space];
		if (atomic_load(&s->state) != PM_SPACE_READ)
			continue;
		rd->n = 0;
		rd->count = 0;
		memset(&rd->info, 0, sizeof(rd->info));
		error = read_window(rd, &c->windows[i]);
		if (error) {
			fail_space(s, -error);
			continue;
		}
		error = put_records(rd, &c->windows[i]);
		if (error)
			atomic_store(&c->error, error);
	}
	atomic_fetch_add(&c->zero_frames, rd->zero_frames);
	reader_destroy(rd);
	return NULL;
}

int pm_census_run_threads(struct pm_census *c, void *(*fn)(void *))
{
	pthread_t thread[64];
	unsigned int i, n = 0;

	atomic_store(&c->next, 0);
	for (i = 1; i < c->threads; i++)
		if (!pthread_create(&thread[n], NULL, fn, c))
			n++;
	fn(c);
	for (i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	if (atomic_load(&c->cancelled))
		return -EINTR;
	return atomic_load(&c->error);
}

int pm_census_read(struct pm_census *c)
{
	struct reader *rd;
	uint64_t total, slack;
	uint32_t i;
	int error = 0;

	if (c->hash)
		return -EINVAL;
	rd = reader_create(c);
	if (!rd)
		return -ENOMEM;
	for (i = 0; i < c->nregions && !error; i++)
		if (pm_space_usable(c, c->regions[i].space))
			error = plan_region(c, i, rd);
	reader_destroy(rd);
	if (error)
		return error;
	/* The target may grow while it is read; reserved memory that is not used costs nothing. */
	total = atomic_load(&c->total);
	slack = total / 2 + (1u << 20);
	c->room = total + slack;
	if (c->room > UINT32_MAX)
		c->room = UINT32_MAX;
	c->hash = pm_census_reserve(c->room * sizeof(*c->hash));
	c->pos = pm_census_reserve(c->room * sizeof(*c->pos));
	if (!c->hash || !c->pos)
		return -ENOMEM;
	error = pm_census_run_threads(c, read_thread);
	free(c->windows);
	c->windows = NULL;
	c->nwindows = c->windows_room = 0;
	return error;
}

/* ---- the second look ---- */

/* Which of these pages are still present anonymous ones, so that reading them faults nothing in. */
static int check_present(const struct pm_space *s, const uint64_t *page, unsigned int n, bool *there, bool *common)
{
	unsigned int i = 0, k;

	while (i < n) {
		uint64_t map[CHUNK];
		unsigned int run = 1;
		ssize_t got;

		while (i + run < n && page[i + run] == page[i] + run)
			run++;
		got = s->pid ? pread(s->fd, map, run * 8, (off_t)(page[i] * 8)) : 0;
		if (s->pid && got <= 0)
			return got < 0 ? -errno : -ESRCH;
		for (k = 0; k < run; k++) {
			there[i + k] = !s->pid || (k < (size_t)got / 8 &&
						   (map[k] & (PAGEMAP_PRESENT | PAGEMAP_FILE)) == PAGEMAP_PRESENT);
			common[i + k] = s->pid && there[i + k] && !(map[k] & PAGEMAP_EXCLUSIVE);
		}
		i += run;
	}
	return 0;
}

static int look_at_chunk(struct reader *rd, const struct pm_segment *g, uint64_t first, unsigned int n)
{
	struct pm_census *c = rd->c;
	const struct pm_region *r = &c->regions[g->region];
	const struct pm_space *s = &c->spaces[r->space];
	uint64_t page[CHUNK] = { 0 }, record[CHUNK];
	bool there[CHUNK], common[CHUNK], got[CHUNK];
	unsigned int i, k = 0;
	int error;

	for (i = 0; i < n; i++)
		page[i] = g->base + (c->pos[first + i] & PM_POS_MASK);
	error = check_present(s, page, n, there, common);
	if (error)
		return error;
	for (i = 0; i < n; i++) {
		if (!there[i]) {
			c->pos[first + i] |= PM_REC_VOLATILE;
			continue;
		}
		page[k] = page[i];
		common[k] = common[i];
		record[k++] = first + i;
	}
	error = k ? read_pages(s, r->offset - (r->start << PM_PAGE_SHIFT), rd->buffer, page, common, k, got) : 0;
	if (error)
		return error;
	for (i = 0; i < k; i++)
		if (!got[i] || pm_page_hash(rd->buffer + (size_t)i * PM_PAGE_SIZE) != c->hash[record[i]])
			c->pos[record[i]] |= PM_REC_VOLATILE;
	return 0;
}

static void *look_thread(void *arg)
{
	struct pm_census *c = arg;
	struct reader *rd = reader_create(c);

	if (!rd)
		return NULL;
	while (!atomic_load(&c->cancelled)) {
		uint64_t i = atomic_fetch_add(&c->next, 1);
		const struct pm_segment *g;
		struct pm_space *s;
		uint64_t at, end;

		if (i >= c->nsegments)
			break;
		g = &c->segments[i];
		s = &c->spaces[c->regions[g->region].space];
		end = g->first + g->count;
		for (at = g->first; at < end && atomic_load(&s->state) == PM_SPACE_READ; at += CHUNK) {
			unsigned int n = end - at < CHUNK ? (unsigned int)(end - at) : CHUNK;
			int error = look_at_chunk(rd, g, at, n);

			if (error)
				fail_space(s, -error);
			atomic_fetch_add_explicit(&c->done, n, memory_order_relaxed);
		}
	}
	reader_destroy(rd);
	return NULL;
}

int pm_census_look_again(struct pm_census *c)
{
	if (!c->hash || c->grouped)
		return -EINVAL;
	atomic_store(&c->done, 0);
	atomic_store(&c->total, c->held);
	return pm_census_run_threads(c, look_thread);
}
