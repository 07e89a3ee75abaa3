// SPDX-License-Identifier: MIT
/* Census: where the groups lie.  Runs that the engine would map, and the regions that carry the saving. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "census_impl.h"

static inline uint32_t group_of(const struct pm_census *c, uint64_t record)
{
	return ((const uint32_t *)(const void *)c->hash)[record];
}

struct place {
	uint32_t region;
	uint64_t page;
};

static const struct pm_census *sorting; /* qsort() passes no argument; its users hold the lock below */

static int by_address(const void *a, const void *b)
{
	const struct pm_segment *x = &sorting->segments[*(const uint32_t *)a], *y = &sorting->segments[*(const uint32_t *)b];

	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	return (x->base > y->base) - (x->base < y->base);
}

static uint32_t *segments_by_address(const struct pm_census *c)
{
	static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
	uint32_t *order = malloc((c->nsegments + 1) * sizeof(*order));
	size_t i;

	if (!order)
		return NULL;
	for (i = 0; i < c->nsegments; i++)
		order[i] = (uint32_t)i;
	pthread_mutex_lock(&one);
	sorting = c;
	qsort(order, c->nsegments, sizeof(*order), by_address);
	pthread_mutex_unlock(&one);
	return order;
}

struct walk {
	struct pm_census *c;
	struct pm_census_run_totals *out;
	uint32_t gap_pages;
	struct pm_region *region;
	bool in_run;
	uint64_t first, last; /* pages of the run */
	struct place pool;    /* of its last page: pool pages lie as the pages they were taken from */
	uint64_t filled;      /* merged pages in it */
	uint64_t covered;     /* page up to which the region's VMAs are counted */
	uint64_t huge;	      /* last huge page counted as split */
};

static void end_run(struct walk *w)
{
	unsigned int bin = 0;
	uint64_t n;

	if (!w->in_run)
		return;
	w->in_run = false;
	n = w->filled;
	while (n >>= 1)
		bin++;
	if (bin >= PM_CENSUS_RUN_BINS)
		bin = PM_CENSUS_RUN_BINS - 1;
	w->out->bins[bin]++;
	w->out->runs++;
	w->out->pages += w->filled;
	w->out->gap_pages += w->last + 1 - w->first - w->filled;
	w->region->info.runs++;
	w->region->info.vmas += 1 + (w->first > w->covered); /* the run, and what is private before it */
	w->covered = w->last + 1;
}

static void end_region(struct walk *w)
{
	if (!w->region)
		return;
	end_run(w);
	if (w->covered < w->region->end)
		w->region->info.vmas++;
}

/* A huge page is split when one of its pages is merged, also with the zero page. */
static void count_split(struct walk *w, uint64_t page)
{
	if (page >> 9 == w->huge)
		return;
	w->huge = page >> 9;
	w->region->info.split_huge++;
}

static void walk_record(struct walk *w, struct place *leader, const struct pm_segment *g, uint32_t pos, uint32_t group)
{
	uint64_t page = g->base + (pos & PM_POS_MASK), step;
	struct place *pool = &leader[group];

	if (!pool->page) /* page 0 is never mapped, see the offset below */
		*pool = (struct place){ .region = g->region, .page = page + 1 };
	step = page - w->last;
	if (w->in_run && step <= (uint64_t)w->gap_pages + 1 && pool->region == w->pool.region &&
	    pool->page == w->pool.page + step) {
		w->filled++;
	} else {
		end_run(w);
		w->in_run = true;
		w->first = page;
		w->filled = 1;
	}
	w->last = page;
	w->pool = *pool;
}

int pm_census_runs(struct pm_census *c, uint32_t gap_pages, struct pm_census_run_totals *out)
{
	struct walk w = { .c = c, .out = out, .gap_pages = gap_pages };
	uint32_t *order;
	struct place *leader;
	size_t i;

	if (!c->grouped)
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	order = segments_by_address(c);
	leader = calloc((size_t)c->ngroups + 1, sizeof(*leader));
	if (!order || !leader) {
		free(order);
		free(leader);
		return -ENOMEM;
	}
	for (i = 0; i < c->nregions; i++)
		c->regions[i].info.runs = c->regions[i].info.vmas = c->regions[i].info.split_huge = 0;
	for (i = 0; i < c->nsegments; i++) {
		const struct pm_segment *g = &c->segments[order[i]];
		uint64_t k;

		if (w.region != &c->regions[g->region]) {
			end_region(&w);
			w.region = &c->regions[g->region];
			w.covered = w.region->start;
			w.huge = UINT64_MAX;
		}
		for (k = g->first; k < g->first + g->count; k++) {
			uint32_t pos = c->pos[k];

			if (pos & PM_REC_HUGE && !(pos & PM_REC_VOLATILE) && pos & (PM_REC_MERGED | PM_REC_ZERO))
				count_split(&w, g->base + (pos & PM_POS_MASK));
			if (pos & PM_REC_MERGED)
				walk_record(&w, leader, g, pos, group_of(c, k));
		}
	}
	end_region(&w);
	free(order);
	free(leader);
	return 0;
}

/* ---- which regions carry the saving ---- */

struct membership {
	uint32_t pages;	  /* members in regions that are left */
	uint32_t regions; /* how many of those */
	uint32_t mix;	  /* their numbers, xor-ed: when one is left, its number */
};

/* What dropping each region would lose; the smallest first, in a heap. */
struct heap {
	uint64_t *loss; /* by region */
	uint32_t *item, *where;
	size_t n;
};

static void heap_swap(struct heap *h, size_t a, size_t b)
{
	uint32_t x = h->item[a];

	h->item[a] = h->item[b];
	h->item[b] = x;
	h->where[h->item[a]] = (uint32_t)a;
	h->where[h->item[b]] = (uint32_t)b;
}

static void heap_up(struct heap *h, size_t i)
{
	for (; i && h->loss[h->item[i]] < h->loss[h->item[(i - 1) / 2]]; i = (i - 1) / 2)
		heap_swap(h, i, (i - 1) / 2);
}

static void heap_down(struct heap *h, size_t i)
{
	for (;;) {
		size_t child = 2 * i + 1, least = i;

		if (child < h->n && h->loss[h->item[child]] < h->loss[h->item[least]])
			least = child;
		if (child + 1 < h->n && h->loss[h->item[child + 1]] < h->loss[h->item[least]])
			least = child + 1;
		if (least == i)
			return;
		heap_swap(h, i, least);
		i = least;
	}
}

struct run_of_group { /* one region's members of one group */
	uint32_t group, count;
};

static int by_group(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* The groups of one region with their number of members there; sorted, in `out`.  Returns how many. */
static size_t groups_of_region(const struct pm_census *c, const uint32_t *order, size_t from, size_t to, uint32_t *scratch,
			       struct run_of_group *out)
{
	size_t i, n = 0, m = 0;

	for (i = from; i < to; i++) {
		const struct pm_segment *g = &c->segments[order[i]];
		uint64_t k;

		for (k = g->first; k < g->first + g->count; k++)
			if (c->pos[k] & PM_REC_MERGED)
				scratch[n++] = group_of(c, k);
	}
	qsort(scratch, n, sizeof(*scratch), by_group);
	for (i = 0; i < n; i++) {
		if (m && out[m - 1].group == scratch[i])
			out[m - 1].count++;
		else
			out[m++] = (struct run_of_group){ .group = scratch[i], .count = 1 };
	}
	return m;
}

struct selection {
	struct pm_census *c;
	uint32_t *order;  /* segments by address */
	size_t *from;	  /* first segment of each region; one more than there are */
	struct membership *member;
	struct heap heap;
	uint32_t *scratch;
	struct run_of_group *groups;
};

static int selection_init(struct selection *s, struct pm_census *c)
{
	size_t i, r, most = 1;

	memset(s, 0, sizeof(*s));
	s->c = c;
	s->order = segments_by_address(c);
	s->from = calloc(c->nregions + 1, sizeof(*s->from));
	s->member = calloc((size_t)c->ngroups + 1, sizeof(*s->member));
	s->heap.loss = calloc(c->nregions + 1, sizeof(*s->heap.loss));
	s->heap.item = calloc(c->nregions + 1, sizeof(*s->heap.item));
	s->heap.where = calloc(c->nregions + 1, sizeof(*s->heap.where));
	for (r = 0; r < c->nregions; r++)
		if (c->regions[r].info.merging > most)
			most = c->regions[r].info.merging;
	s->scratch = calloc(most, sizeof(*s->scratch));
	s->groups = calloc(most, sizeof(*s->groups));
	if (!s->order || !s->from || !s->member || !s->heap.loss || !s->heap.item || !s->heap.where || !s->scratch ||
	    !s->groups)
		return -ENOMEM;
	for (i = 0, r = 0; r < c->nregions; r++) {
		s->from[r] = i;
		while (i < c->nsegments && c->segments[s->order[i]].region == r)
			i++;
	}
	s->from[r] = i;
	return 0;
}

static void selection_deinit(struct selection *s)
{
	free(s->order);
	free(s->from);
	free(s->member);
	free(s->heap.loss);
	free(s->heap.item);
	free(s->heap.where);
	free(s->scratch);
	free(s->groups);
}

static size_t region_groups(struct selection *s, uint32_t r)
{
	return groups_of_region(s->c, s->order, s->from[r], s->from[r + 1], s->scratch, s->groups);
}

/* A content that is left in one region: without that region its first page needs no saving either. */
static void left_alone(struct selection *s, const struct membership *m)
{
	struct heap *h = &s->heap;

	if (m->regions == 1 && m->pages && h->where[m->mix] != UINT32_MAX) {
		h->loss[m->mix]--;
		heap_up(h, h->where[m->mix]);
	}
}

static void fill_heap(struct selection *s)
{
	struct pm_census *c = s->c;
	struct heap *h = &s->heap;
	uint32_t r;
	size_t i, n;

	for (r = 0; r < c->nregions; r++) {
		h->where[r] = UINT32_MAX;
		if (!pm_space_usable(c, c->regions[r].space))
			continue;
		n = region_groups(s, r);
		for (i = 0; i < n; i++) {
			struct membership *m = &s->member[s->groups[i].group];

			m->pages += s->groups[i].count;
			m->regions++;
			m->mix ^= r;
			h->loss[r] += s->groups[i].count;
		}
		h->loss[r] += c->regions[r].info.zero / c->sample; /* zero pages are counted, not sampled */
		if (!n && !c->regions[r].info.zero)
			continue;
		h->where[r] = (uint32_t)h->n;
		h->item[h->n++] = r;
	}
	for (i = 1; i <= c->ngroups; i++)
		if (s->member[i].regions == 1)
			h->loss[s->member[i].mix]--;
	for (i = h->n; i--;)
		heap_down(h, i);
}

static uint64_t drop_region(struct selection *s)
{
	struct heap *h = &s->heap;
	uint32_t r = h->item[0];
	uint64_t loss = h->loss[r];
	size_t i, n;

	heap_swap(h, 0, --h->n);
	h->where[r] = UINT32_MAX;
	heap_down(h, 0);
	n = region_groups(s, r);
	for (i = 0; i < n; i++) {
		struct membership *m = &s->member[s->groups[i].group];

		m->pages -= s->groups[i].count;
		m->regions--;
		m->mix ^= r;
		left_alone(s, m);
	}
	return loss;
}

int pm_census_select(struct pm_census *c, uint32_t *order, double *saving, size_t *n)
{
	struct selection s;
	uint64_t total = 0;
	size_t i, count;
	int error;

	if (!c->grouped)
		return -EINVAL;
	error = selection_init(&s, c);
	if (error)
		goto out;
	fill_heap(&s);
	count = s.heap.n;
	if (count > *n) {
		error = -ENOSPC;
		goto out;
	}
	for (i = 1; i <= c->ngroups; i++)
		if (s.member[i].pages)
			total += s.member[i].pages - 1;
	for (i = 0; i < c->nregions; i++)
		if (pm_space_usable(c, c->regions[i].space))
			total += c->regions[i].info.zero / c->sample;
	for (i = count; i--;) {
		order[i] = s.heap.item[0];
		saving[i] = (double)total;
		total -= drop_region(&s);
	}
	*n = count;
out:
	selection_deinit(&s);
	return error;
}
