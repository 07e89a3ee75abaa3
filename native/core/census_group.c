// SPDX-License-Identifier: MIT
/* Census: counting.  Each content, all its records together, is counted as ksmd would merge it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "census_impl.h"

/* ---- one group ---- */

struct grouper {
	struct pm_sorter *s;
	uint32_t max_page_sharing;
	struct pm_census_pairs *pairs;
	size_t npairs;
	uint32_t **count; /* per matrix: members per party of the group at hand */
	uint32_t **touched;
	struct pm_census_top *top;
	size_t ntop, room;
	struct pm_census_totals *t;
	uint32_t *region; /* of each member, sorted */
	uint64_t *address;
	uint64_t ncommon; /* addresses of the group at hand that fork may have left shared */
	size_t region_room;
};

static int compare_u32(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Content on n mappings: KSM pages, and further mappings of them, after ksmd has settled. */
static void ksm_counts(uint64_t n, uint64_t limit, uint64_t *shared, uint64_t *sharing)
{
	uint64_t full = n / limit, rest = n % limit;

	*shared = full + (rest >= 2);
	*sharing = n - *shared - (rest == 1);
}

static void count_pairs(struct grouper *gr, const uint32_t *region, size_t n, uint64_t hash)
{
	size_t m, i, j;

	for (m = 0; m < gr->npairs; m++) {
		struct pm_census_pairs *p = &gr->pairs[m];
		uint32_t *count = gr->count[m], *touched = gr->touched[m];
		size_t k = 0;
		/* all pairs of many parties cost too much for every content: then a part stands for all */
		uint64_t stride = 1;

		for (i = 0; i < n; i++) {
			uint32_t party = p->party[region[i]];

			if (party >= p->parties)
				continue;
			if (!count[party]++)
				touched[k++] = party;
		}
		if (k > 64) {
			stride = k * k / 4096;
			if ((hash >> 20) % stride)
				goto clear;
		}
		for (i = 0; i < k; i++) {
			double *row = p->matrix + (size_t)touched[i] * p->parties;
			uint32_t a = count[touched[i]];

			row[touched[i]] += (double)(stride * (a - 1));
			for (j = 0; j < k; j++)
				if (j != i)
					row[touched[j]] += (double)(stride * (a < count[touched[j]] ? a : count[touched[j]]));
		}
clear:
		for (i = 0; i < k; i++)
			count[touched[i]] = 0;
	}
}

static void offer_top(struct grouper *gr, const struct pm_census_top *entry)
{
	size_t i = gr->ntop;

	if (i == gr->room) {
		if (!i || gr->top[i - 1].pages >= entry->pages)
			return;
		i--;
	} else {
		gr->ntop++;
	}
	for (; i && gr->top[i - 1].pages < entry->pages; i--)
		gr->top[i] = gr->top[i - 1];
	gr->top[i] = *entry;
}

/* Physical pages under n members; *ksm: whether one is merged already. */
static uint64_t count_frames(struct grouper *gr, const uint32_t *member, size_t n, bool *ksm)
{
	struct pm_census *c = gr->s->c;
	uint64_t own = 0, aliases = 0, i;

	for (i = 0; i < n; i++) {
		uint32_t pos = c->pos[member[i]];

		*ksm |= !!(pos & PM_REC_KSM);
		if (!(pos & PM_REC_ALIAS)) {
			own++;
		} else if (!c->frames_known) {
			const struct pm_segment *g = pm_segment_of(gr->s, member[i]);

			gr->address[aliases++] = g->base + (pos & PM_POS_MASK);
		}
	}
	/* Without frame numbers: fork leaves a shared page at the same address in both. */
	gr->ncommon = 0;
	if (aliases) {
		qsort(gr->address, aliases, sizeof(*gr->address), compare_u64);
		for (i = 0; i < aliases; i++)
			gr->ncommon += !i || gr->address[i] != gr->address[i - 1];
	}
	own += gr->ncommon;
	return own ? own : 1;
}

/* What one content comes to. */
struct sums {
	uint64_t shared, sharing, unshared, aliases, merging, saved, within, between;
};

/* Content on n mappings of so many physical pages: does it merge, and into what? */
static bool sum_content(const struct grouper *gr, uint64_t n, uint64_t frames, uint64_t spaces, bool ksm, struct sums *out)
{
	memset(out, 0, sizeof(*out));
	if (frames < 2 && !ksm) { /* one page, or one that fork left shared: it equals itself only */
		out->unshared = !!n;
		out->aliases = n - !!n;
		return false;
	}
	ksm_counts(n, gr->max_page_sharing, &out->shared, &out->sharing);
	out->unshared = n - out->shared - out->sharing;
	out->merging = n;
	out->saved = frames > out->shared ? frames - out->shared : 0;
	out->within = n - spaces;
	out->between = spaces - !!spaces;
	return true;
}

/* A content that is sampled stands for N, and adds to the variances; one that is counted for itself. */
static void add_sums(struct grouper *gr, const struct sums *s, bool sampled)
{
	struct pm_census_totals *t = gr->t;
	uint64_t n = sampled ? gr->s->c->sample : 1;
	double one = sampled;

	t->distinct += n;
	t->shared += n * s->shared;
	t->sharing += n * s->sharing;
	t->unshared += n * s->unshared;
	t->aliases += n * s->aliases;
	t->merging += n * s->merging;
	t->frames_saved += n * s->saved;
	t->within += n * s->within;
	t->between += n * s->between;
	if (s->shared > 1) {
		t->chains += n;
		t->dups += n * s->shared;
	}
	t->distinct2 += one;
	t->shared2 += one * (double)s->shared * (double)s->shared;
	t->sharing2 += one * (double)s->sharing * (double)s->sharing;
	t->unshared2 += one * (double)s->unshared * (double)s->unshared;
	t->frames_saved2 += one * (double)s->saved * (double)s->saved;
	t->within2 += one * (double)s->within * (double)s->within;
	t->between2 += one * (double)s->between * (double)s->between;
	t->volatile2 += one * (double)s->aliases * (double)s->aliases;
	t->merging2 += one * (double)s->merging * (double)s->merging;
}

static int make_member_room(struct grouper *gr, size_t n)
{
	if (n <= gr->region_room)
		return 0;
	free(gr->region);
	free(gr->address);
	gr->region_room = n * 2;
	gr->region = malloc(gr->region_room * sizeof(*gr->region));
	gr->address = malloc(gr->region_room * sizeof(*gr->address));
	return gr->region && gr->address ? 0 : -ENOMEM;
}

/* Fills gr->region, sorted; *spaces: how many spaces these are of.  Returns how many regions. */
static uint64_t find_regions(struct grouper *gr, const uint32_t *member, size_t n, uint64_t *spaces)
{
	const struct pm_census *c = gr->s->c;
	uint64_t regions = 0;
	size_t i;

	for (i = 0; i < n; i++)
		gr->region[i] = pm_segment_of(gr->s, member[i])->region;
	qsort(gr->region, n, sizeof(*gr->region), compare_u32);
	*spaces = 0;
	for (i = 0; i < n; i++) {
		if (i && gr->region[i] == gr->region[i - 1])
			continue;
		regions++;
		*spaces += !i || c->regions[gr->region[i - 1]].space != c->regions[gr->region[i]].space;
	}
	return regions;
}

/* Members become a group; `share`: of the frames that merging frees, for each of them. */
static void mark_members(struct grouper *gr, const uint32_t *member, size_t n, double share)
{
	struct pm_census *c = gr->s->c;
	size_t i, j;

	for (i = 0; i < n; i = j) {
		struct pm_region *r = &c->regions[gr->region[i]];

		for (j = i; j < n && gr->region[j] == gr->region[i]; j++)
			;
		r->info.merging += j - i;
		r->info.saved += (double)(j - i) * share;
	}
	c->ngroups++;
	for (i = 0; i < n; i++) {
		gr->t->already += c->pos[member[i]] & PM_REC_KSM ? c->sample : 0;
		c->pos[member[i]] |= PM_REC_MERGED;
		c->hash[member[i]] = c->ngroups; /* sorted past already: the hash is not needed any more */
	}
}

static int count_group(struct grouper *gr, const uint32_t *member, size_t n)
{
	struct pm_census *c = gr->s->c;
	uint64_t hash = c->hash[member[0]], pages = n, frames = 1, counted, spaces = 1, regions;
	struct pm_heavy *heavy = c->pos[member[0]] & PM_REC_HEAVY ? pm_heavy_find(c, hash) : NULL;
	struct sums sums;
	bool ksm = false;

	if (n == 1 && !heavy) {
		sum_content(gr, 1, 1, 1, false, &sums);
		add_sums(gr, &sums, c->sample > 1);
		return 0;
	}
	if (make_member_room(gr, n))
		return -ENOMEM;
	counted = count_frames(gr, member, n, &ksm);
	regions = find_regions(gr, member, n, &spaces);
	if (heavy) {
		pm_heavy_sum(c, heavy, &pages, &frames, &spaces);
		if (!c->frames_known)
			heavy->frames = (uint64_t)c->sample * gr->ncommon;
		frames += heavy->frames;
		heavy->merges = ksm;
	} else {
		frames = counted;
	}
	if (!sum_content(gr, pages, frames, spaces, ksm, &sums)) {
		if (!heavy)
			add_sums(gr, &sums, c->sample > 1);
		return 0;
	}
	if (!heavy) /* those are summed up when all are through, see count_heavy() */
		add_sums(gr, &sums, c->sample > 1);
	count_pairs(gr, gr->region, n, hash);
	if (gr->room) {
		const struct pm_segment *g = pm_segment_of(gr->s, member[0]);

		offer_top(gr, &(struct pm_census_top){
			.hash = hash, .pages = pages, .frames = frames, .spaces = spaces, .regions = regions,
			.region = g->region, .page = g->base + (c->pos[member[0]] & PM_POS_MASK),
		});
	}
	mark_members(gr, member, n, (double)sums.sharing / (double)pages);
	return 0;
}

/* Heavy contents, also those of which no record happened to be kept. */
static void count_heavy(struct grouper *gr)
{
	const struct pm_census *c = gr->s->c;
	size_t i;

	for (i = 0; c->heavies && i <= c->heavy_mask; i++) {
		const struct pm_heavy *h = &c->heavy[i];
		uint64_t pages, frames, spaces;
		struct sums sums;

		if (!h->hits)
			continue;
		pm_heavy_sum(c, h, &pages, &frames, &spaces);
		if (!pages)
			continue;
		sum_content(gr, pages, frames + h->frames, spaces, h->merges, &sums);
		add_sums(gr, &sums, false);
	}
}

static void count_zero(struct pm_census *c, struct pm_census_totals *t)
{
	uint32_t space = UINT32_MAX;
	uint64_t aliases = 0;
	size_t g, i;

	for (g = 0; g < c->nsegments; g++) {
		const struct pm_segment *seg = &c->segments[g];

		for (i = seg->first; i < seg->first + seg->count; i++) {
			struct pm_census_region_info *info = &c->regions[seg->region].info;

			if (!pm_segment_counts(c, seg))
				continue;
			if (c->pos[i] & PM_REC_VOLATILE) {
				info->volatile_++;
				t->volatile_ += c->sample;
				t->volatile2 += 1;
				if (c->pos[i] & PM_REC_HEAVY)
					pm_heavy_find(c, c->hash[i])->volatile_++;
				if (c->pos[i] & PM_REC_ZERO) {
					info->zero--;
					info->zero_huge -= !!(c->pos[i] & PM_REC_HUGE);
					aliases += !(c->pos[i] & PM_REC_ALIAS);
				}
			}
		}
	}
	for (i = 0; i < c->nregions; i++) {
		const struct pm_region *r = &c->regions[i];

		if (!pm_space_usable(c, r->space))
			continue;
		t->held += r->info.held;
		t->zero += r->info.zero;
		t->zero_huge += r->info.zero_huge;
		if (r->info.zero && r->space != space) {
			t->zero_spaces++;
			space = r->space;
		}
	}
	t->zero_frames = atomic_load(&c->zero_frames) - aliases;
	if (t->zero_frames > t->zero)
		t->zero_frames = t->zero;
}

/* Eight bytes of hash give way to four of group number. */
static void shrink_hashes(struct pm_census *c)
{
	uint32_t *group = (uint32_t *)c->hash;
	size_t i, used = (c->held * sizeof(*group) + PM_PAGE_SIZE - 1) & ~(size_t)(PM_PAGE_SIZE - 1);

	for (i = 0; i < c->held; i++) {
		uint64_t hash = c->hash[i];
		uint32_t number = c->pos[i] & PM_REC_MERGED ? (uint32_t)hash : 0;

		memcpy(&group[i], &number, sizeof(number));
	}
	(void)madvise((uint8_t *)c->hash + used, c->room * sizeof(*c->hash) - used, MADV_DONTNEED);
}

static int count_groups(struct grouper *gr)
{
	struct pm_census *c = gr->s->c;
	size_t i, j;

	for (i = 0; i < gr->s->n; i = j) {
		uint64_t hash = c->hash[gr->s->order[i]];
		int error;

		for (j = i + 1; j < gr->s->n && c->hash[gr->s->order[j]] == hash; j++)
			;
		error = count_group(gr, gr->s->order + i, j - i);
		if (error)
			return error;
	}
	return 0;
}

int pm_census_group(struct pm_census *c, uint32_t max_page_sharing, struct pm_census_pairs *pairs, size_t npairs,
		    struct pm_census_top *top, size_t *ntop, struct pm_census_totals *totals)
{
	struct pm_sorter s = { .c = c };
	struct grouper gr = { .s = &s, .max_page_sharing = max_page_sharing, .pairs = pairs, .npairs = npairs, .top = top,
			      .room = ntop ? *ntop : 0, .t = totals };
	size_t i;
	int error = -ENOMEM;

	if (!c->hash || c->grouped || max_page_sharing < 2)
		return -EINVAL;
	memset(totals, 0, sizeof(*totals));
	c->grouped = true;
	gr.count = calloc(npairs + 1, sizeof(*gr.count));
	gr.touched = calloc(npairs + 1, sizeof(*gr.touched));
	if (!gr.count || !gr.touched)
		goto out;
	for (i = 0; i < npairs; i++) {
		gr.count[i] = calloc(pairs[i].parties + 1, sizeof(**gr.count));
		gr.touched[i] = calloc(pairs[i].parties + 1, sizeof(**gr.touched));
		if (!gr.count[i] || !gr.touched[i])
			goto out;
	}
	count_zero(c, totals);
	error = 0;
	for (s.half = 0; s.half < 2 && !error; s.half++) {
		uint64_t bytes = c->held * (sizeof(*c->hash) + sizeof(*c->pos)) + c->nsegments * sizeof(*c->segments);

		error = pm_census_sort(&s);
		if (!error)
			error = count_groups(&gr);
		bytes += s.n * sizeof(*s.order) + s.buckets * sizeof(*s.bucket) + (c->held >> PM_HINT_SHIFT) * sizeof(*s.hint);
		if (bytes > c->peak_bytes)
			c->peak_bytes = bytes;
		pm_sorter_deinit(&s);
	}
	if (!error)
		count_heavy(&gr);
	shrink_hashes(c);
out:
	for (i = 0; i < npairs; i++) {
		if (gr.count)
			free(gr.count[i]);
		if (gr.touched)
			free(gr.touched[i]);
	}
	free(gr.count);
	free(gr.touched);
	free(gr.region);
	free(gr.address);
	if (ntop)
		*ntop = gr.ntop;
	return error;
}

size_t pm_census_regions(const struct pm_census *c)
{
	return c->nregions;
}

void pm_census_region(const struct pm_census *c, size_t region, struct pm_census_region_info *out)
{
	*out = c->regions[region].info;
}

int pm_census_huge_known(const struct pm_census *c)
{
	return c->scan_works;
}

int pm_census_frames_known(const struct pm_census *c)
{
	return c->frames_known;
}

uint64_t pm_census_bytes(const struct pm_census *c)
{
	return c->peak_bytes;
}
