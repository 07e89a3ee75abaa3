// SPDX-License-Identifier: MIT
/* Census: reading.  The threads take windows of address space; each keeps to pages that are present. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "census_impl.h"
#include "page.h"

#define PAGEMAP_PFN ((1ull << 55) - 1)
#define KPF_KSM_BIT 21
#define KPF_ZERO_PAGE_BIT 24

/* A thirtieth of a core that a program of nice 0 wants for itself. */
enum { READER_NICE = 15 };

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

static uint64_t kpageflags(const struct pm_census *c, uint64_t entry)
{
	uint64_t flags = 0;

	if (!(entry & PAGEMAP_PFN) || pread(c->kpageflags_fd, &flags, 8, (off_t)((entry & PAGEMAP_PFN) * 8)) != 8)
		return 0;
	return flags;
}

static bool is_merged_now(struct pm_census *c, uint64_t entry)
{
	return c->ksm_active && !(entry & PAGEMAP_EXCLUSIVE) && kpageflags(c, entry) >> KPF_KSM_BIT & 1;
}

/*
 * Whether a page of zeros is the kernel's zero page, which memory that was only read maps, and which is no candidate.
 * PAGEMAP_SCAN leaves it out; before Linux 6.7 its frame tells, and where that is hidden, that others map it, too.
 */
static bool is_zero_page(const struct pm_census *c, const struct pm_space *s, uint64_t page)
{
	uint64_t entry = 0, flags;

	if (c->scan_works || pread(s->fd, &entry, sizeof(entry), (off_t)(page * 8)) != sizeof(entry))
		return false;
	flags = kpageflags(c, entry);
	return flags ? flags >> KPF_ZERO_PAGE_BIT & 1 : !(entry & PAGEMAP_EXCLUSIVE);
}

/* By content, so that equal pages are kept or left together; the factor makes each salt another choice. */
static bool is_sampled(const struct pm_census *c, uint64_t hash)
{
	return (uint32_t)((hash ^ c->salt) * 0x9e3779b97f4a7c15u >> 32) <= c->threshold;
}

/* Whether a page's record is kept; *flag says what it is. */
static bool is_kept(struct pm_reader *rd, const struct pm_region *r, uint64_t hash, uint64_t page, uint32_t *flag)
{
	struct pm_census *c = rd->c;
	const struct pm_heavy *heavy;

	if (hash == c->zero_hash) {
		rd->info.zero++;
		rd->info.zero_huge += !!(*flag & PM_REC_HUGE);
		rd->zero_frames += !(*flag & PM_REC_ALIAS);
		*flag |= PM_REC_ZERO;
		return c->sample == 1; /* counted, all of them, rather than sampled */
	}
	if (c->sample == 1)
		return true;
	heavy = pm_heavy_find(c, hash);
	if (!heavy)
		return is_sampled(c, hash);
	pm_heavy_count(c, heavy, r->space, *flag & PM_REC_ALIAS);
	*flag |= PM_REC_HEAVY;
	return pm_heavy_keeps(c, page);
}

static void take_page(struct pm_reader *rd, const struct pm_region *r, const uint8_t *bytes, uint64_t base, uint64_t page,
		      uint32_t flag, bool common)
{
	uint64_t hash = pm_page_hash(bytes);

	if (rd->pilot) {
		if (hash != rd->c->zero_hash)
			rd->hash[rd->count++] = hash;
		return;
	}
	if (common && hash == rd->c->zero_hash && is_zero_page(rd->c, &rd->c->spaces[r->space], page))
		return;
	rd->info.present++;
	rd->info.huge += !!(flag & PM_REC_HUGE);
	if (!is_kept(rd, r, hash, page, &flag))
		return;
	rd->hash[rd->count] = hash;
	rd->pos[rd->count++] = (uint32_t)(page - base) | flag;
}

static int flush_chunk(struct pm_reader *rd, const struct pm_region *r, uint64_t base)
{
	struct pm_space *s = &rd->c->spaces[r->space];
	uint64_t file_base = r->offset - (r->start << PM_PAGE_SHIFT);
	bool got[PM_CHUNK];
	unsigned int i;
	int error = pm_census_fetch(s, file_base, rd->buffer, rd->page, rd->common, rd->n, got);

	if (error)
		return error;
	for (i = 0; i < rd->n; i++) {
		if (got[i])
			take_page(rd, r, rd->buffer + (size_t)i * PM_PAGE_SIZE, base, rd->page[i], rd->flag[i], rd->common[i]);
		else
			rd->info.lost++;
	}
	if (!rd->pilot)
		atomic_fetch_add_explicit(&rd->c->done, rd->n, memory_order_relaxed);
	rd->n = 0;
	return 0;
}

static int push_page(struct pm_reader *rd, const struct pm_region *r, uint64_t base, uint64_t page, uint32_t flag, bool common)
{
	if (rd->pilot && !pm_pilot_picks(rd->c, r->space, page))
		return 0;
	rd->page[rd->n] = page;
	rd->common[rd->n] = common;
	rd->flag[rd->n++] = flag;
	return rd->n == PM_CHUNK ? flush_chunk(rd, r, base) : 0;
}

static int read_extent(struct pm_reader *rd, const struct pm_region *r, uint64_t base, const struct pm_page_region *e)
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
			if (!rd->pilot) {
				if (is_merged_now(c, map[i]))
					flag |= PM_REC_KSM;
				if (seen_before(c, map[i]))
					flag |= PM_REC_ALIAS;
			}
			error = push_page(rd, r, base, at + i, flag, !(map[i] & PAGEMAP_EXCLUSIVE));
			if (error)
				return error;
		}
		at += i;
	}
	return 0;
}

static int read_window(struct pm_reader *rd, const struct pm_window *w)
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

			if (!pm_census_next_data(s, r, &at, &hole))
				break;
			for (; at < end && at < hole && !error; at++)
				error = push_page(rd, r, w->start, at, 0, false);
			continue;
		}
		n = pm_census_extents(c, s, &at, end, rd->extent, PM_EXTENTS, rd->map);
		if (n < 0)
			return n;
		for (i = 0; i < n && !error; i++)
			error = read_extent(rd, r, w->start, &rd->extent[i]);
	}
	if (!error && rd->n)
		error = flush_chunk(rd, r, w->start);
	return error ? error : pm_census_still_there(s, w->start) ? 0 : -ESRCH;
}

/* Hand a window's records over. */
static int put_records(struct pm_reader *rd, const struct pm_window *w)
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
		info->zero_huge += rd->info.zero_huge;
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

static void *read_thread(void *arg)
{
	struct pm_census *c = arg;
	struct pm_reader *rd = pm_reader_create(c);

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
			pm_census_fail(s, -error);
			continue;
		}
		error = put_records(rd, &c->windows[i]);
		if (error)
			atomic_store(&c->error, error);
	}
	atomic_fetch_add(&c->zero_frames, rd->zero_frames);
	pm_reader_destroy(rd);
	return NULL;
}

/* What can't be read is told by the reading that follows. */
static void *pilot_thread(void *arg)
{
	struct pm_census *c = arg;
	struct pm_reader *rd = pm_reader_create(c);
	uint64_t i;

	if (!rd)
		return NULL;
	rd->pilot = true;
	while (!atomic_load(&c->cancelled) && (i = atomic_fetch_add(&c->next, 1)) < c->nwindows) {
		rd->n = 0;
		rd->count = 0;
		(void)read_window(rd, &c->windows[i]);
		pm_pilot_put(c, rd->hash, rd->count);
	}
	pm_reader_destroy(rd);
	return NULL;
}

static int run_pilot(struct pm_census *c)
{
	int error = pm_pilot_begin(c);

	if (!error)
		error = pm_census_run_threads(c, pilot_thread);
	return error ? error : pm_pilot_end(c);
}

struct errand {
	struct pm_census *c;
	void *(*fn)(void *);
};

/* The programs that are read go first where there are no cores to spare: a look is to cost them little. */
static void *run_errand(void *arg)
{
	const struct errand *e = arg;

	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), READER_NICE);
	return e->fn(e->c);
}

int pm_census_run_threads(struct pm_census *c, void *(*fn)(void *))
{
	struct errand errand = { .c = c, .fn = fn };
	pthread_t thread[PM_THREADS_MAX];
	unsigned int i, n = 0;

	atomic_store(&c->next, 0);
	for (i = 0; i < c->threads; i++)
		if (!pthread_create(&thread[n], NULL, run_errand, &errand))
			n++;
	if (!n) /* no threads to be had */
		fn(c);
	for (i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	if (atomic_load(&c->cancelled))
		return -EINTR;
	return atomic_load(&c->error);
}

int pm_census_read(struct pm_census *c)
{
	struct pm_reader *rd;
	uint64_t total, slack;
	uint32_t i;
	int error = 0;

	if (c->hash)
		return -EINVAL;
	rd = pm_reader_create(c);
	if (!rd)
		return -ENOMEM;
	for (i = 0; i < c->nregions && !error; i++)
		if (pm_space_usable(c, c->regions[i].space))
			error = pm_census_plan_region(c, i, rd);
	pm_reader_destroy(rd);
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
	error = c->sample > 1 ? run_pilot(c) : 0;
	if (!error)
		error = pm_census_run_threads(c, read_thread);
	free(c->windows);
	c->windows = NULL;
	c->nwindows = c->windows_room = 0;
	return error;
}
