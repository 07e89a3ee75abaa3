// SPDX-License-Identifier: MIT
/* Census: counting.  Records are sorted by hash through an index, and each group is counted as ksmd would merge it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "census_impl.h"

enum { BUCKET_RECORDS = 1024, BUCKETS_MAX = 1 << 16, HINT_SHIFT = 10 };

struct sorter {
	struct pm_census *c;
	uint32_t *order;
	size_t n;
	uint64_t half;	  /* sorted in two halves of the hash space, so that the index is half as long */
	uint64_t *bucket; /* where each begins; one more than there are */
	size_t buckets;
	unsigned int shift;
	uint32_t *hint; /* segment that holds record i << HINT_SHIFT */
};

/* run_threads() passes the census alone; sorting is the only user, and one at a time. */
static struct sorter *sorting;

/* Three-way quicksort: equal hashes, of which there are many, are done in one step. */
static void sort_range(const uint64_t *hash, uint32_t *v, size_t n)
{
	while (n > 1) {
		size_t lt = 0, i = 0, gt = n;
		uint64_t a = hash[v[0]], b = hash[v[n / 2]], d = hash[v[n - 1]];
		uint64_t pivot = a < b ? (b < d ? b : a < d ? d : a) : (a < d ? a : b < d ? d : b);

		while (i < gt) {
			uint32_t x = v[i];
			uint64_t h = hash[x];

			if (h < pivot) {
				v[i++] = v[lt];
				v[lt++] = x;
			} else if (h > pivot) {
				v[i] = v[--gt];
				v[gt] = x;
			} else {
				i++;
			}
		}
		if (lt < n - gt) { /* recurse into the smaller part */
			sort_range(hash, v, lt);
			v += gt;
			n -= gt;
		} else {
			sort_range(hash, v + gt, n - gt);
			n = lt;
		}
	}
}

static void *sort_thread(void *arg)
{
	struct pm_census *c = arg;
	struct sorter *s = sorting;

	for (;;) {
		uint64_t i = atomic_fetch_add(&c->next, 1);

		if (i >= s->buckets || atomic_load(&c->cancelled))
			return NULL;
		sort_range(c->hash, s->order + s->bucket[i], (size_t)(s->bucket[i + 1] - s->bucket[i]));
	}
}

static bool segment_counts(const struct pm_census *c, const struct pm_segment *g)
{
	return pm_space_usable(c, c->regions[g->region].space);
}

static bool sortable(const struct sorter *s, uint64_t record)
{
	/* what was merged in the first half holds its group's number in place of its hash */
	return !(s->c->pos[record] & (PM_REC_VOLATILE | PM_REC_ZERO | PM_REC_MERGED)) && s->c->hash[record] >> 63 == s->half;
}

static size_t bucket_of(const struct sorter *s, uint64_t record)
{
	return s->shift == 64 ? 0 : (size_t)(s->c->hash[record] << 1 >> s->shift);
}

static void sorter_deinit(struct sorter *s)
{
	free(s->bucket);
	free(s->hint);
	if (s->order)
		munmap(s->order, s->n ? s->n * sizeof(*s->order) : 1);
	s->bucket = NULL;
	s->hint = NULL;
	s->order = NULL;
}

/* Index of all records of this half that can be equal to another: of spaces that were read, not volatile, not zero. */
static int sort_records(struct sorter *s)
{
	static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
	struct pm_census *c = s->c;
	uint64_t *next;
	size_t g, b;
	int error;

	for (s->buckets = 1; s->buckets < BUCKETS_MAX && s->buckets * BUCKET_RECORDS < c->held / 2; s->buckets *= 2)
		;
	s->shift = 64;
	for (b = s->buckets; b > 1; b /= 2)
		s->shift--;
	s->bucket = calloc(s->buckets + 1, sizeof(*s->bucket));
	next = calloc(s->buckets + 1, sizeof(*next));
	s->hint = malloc(((c->held >> HINT_SHIFT) + 2) * sizeof(*s->hint));
	if (!s->bucket || !next || !s->hint) {
		free(next);
		return -ENOMEM;
	}
	for (g = 0; g < c->nsegments; g++) {
		const struct pm_segment *seg = &c->segments[g];
		uint64_t i;

		for (i = seg->first; i < seg->first + seg->count; i++) {
			if (!(i & ((1u << HINT_SHIFT) - 1)))
				s->hint[i >> HINT_SHIFT] = (uint32_t)g;
			if (segment_counts(c, seg) && sortable(s, i))
				s->bucket[bucket_of(s, i) + 1]++;
		}
	}
	for (b = 0; b < s->buckets; b++)
		s->bucket[b + 1] += s->bucket[b];
	s->n = (size_t)s->bucket[s->buckets];
	s->order = pm_census_reserve(s->n * sizeof(*s->order));
	if (!s->order) {
		free(next);
		return -ENOMEM;
	}
	memcpy(next, s->bucket, (s->buckets + 1) * sizeof(*next));
	for (g = 0; g < c->nsegments; g++) {
		const struct pm_segment *seg = &c->segments[g];
		uint64_t i;

		if (!segment_counts(c, seg))
			continue;
		for (i = seg->first; i < seg->first + seg->count; i++)
			if (sortable(s, i))
				s->order[next[bucket_of(s, i)]++] = (uint32_t)i;
	}
	free(next);
	pthread_mutex_lock(&one);
	sorting = s;
	error = pm_census_run_threads(c, sort_thread);
	pthread_mutex_unlock(&one);
	return error;
}

static const struct pm_segment *segment_of(const struct sorter *s, uint64_t record)
{
	const struct pm_segment *g = &s->c->segments[s->hint[record >> HINT_SHIFT]];

	while (record >= g->first + g->count)
		g++;
	return g;
}

/* ---- one group ---- */

struct grouper {
	struct sorter *s;
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
			const struct pm_segment *g = segment_of(gr->s, member[i]);

			gr->address[aliases++] = g->base + (pos & PM_POS_MASK);
		}
	}
	/* Without frame numbers: fork leaves a shared page at the same address in both. */
	if (aliases) {
		qsort(gr->address, aliases, sizeof(*gr->address), compare_u64);
		for (i = 0; i < aliases; i++)
			own += !i || gr->address[i] != gr->address[i - 1];
	}
	return own ? own : 1;
}

static int count_group(struct grouper *gr, const uint32_t *member, size_t n)
{
	struct pm_census *c = gr->s->c;
	struct pm_census_totals *t = gr->t;
	uint64_t hash = c->hash[member[0]], frames, shared, sharing, saved, spaces = 0, regions = 0, within;
	const struct pm_segment *g;
	bool ksm = false;
	size_t i, j;

	t->distinct++;
	t->distinct2 += 1;
	if (n == 1) {
		t->unshared++;
		t->unshared2 += 1;
		return 0;
	}
	if (n > gr->region_room) {
		free(gr->region);
		free(gr->address);
		gr->region_room = n * 2;
		gr->region = malloc(gr->region_room * sizeof(*gr->region));
		gr->address = malloc(gr->region_room * sizeof(*gr->address));
		if (!gr->region || !gr->address)
			return -ENOMEM;
	}
	frames = count_frames(gr, member, n, &ksm);
	if (frames < 2 && !ksm) { /* one page that fork left shared: it equals itself only */
		t->unshared++;
		t->unshared2 += 1;
		t->aliases += n - 1;
		return 0;
	}
	for (i = 0; i < n; i++)
		gr->region[i] = segment_of(gr->s, member[i])->region;
	qsort(gr->region, n, sizeof(*gr->region), compare_u32);
	ksm_counts(n, gr->max_page_sharing, &shared, &sharing);
	saved = frames > shared ? frames - shared : 0;
	for (i = 0; i < n; i = j) {
		struct pm_region *r = &c->regions[gr->region[i]];

		for (j = i; j < n && gr->region[j] == gr->region[i]; j++)
			;
		regions++;
		spaces += !i || c->regions[gr->region[i - 1]].space != r->space;
		r->info.merging += j - i;
		r->info.merging2 += (j - i) * (j - i);
		r->info.saved += (double)(j - i) * (double)sharing / (double)n;
	}
	within = n - spaces;
	count_pairs(gr, gr->region, n, hash);
	c->ngroups++;
	for (i = 0; i < n; i++) {
		t->already += !!(c->pos[member[i]] & PM_REC_KSM);
		c->pos[member[i]] |= PM_REC_MERGED;
		c->hash[member[i]] = c->ngroups; /* sorted past already: the hash is not needed any more */
	}
	t->shared += shared;
	t->sharing += sharing;
	t->unshared += n - shared - sharing;
	t->merging += n;
	t->frames_saved += saved;
	t->within += within;
	t->between += spaces - 1;
	if (shared > 1) {
		t->chains++;
		t->dups += shared;
	}
	t->shared2 += (double)shared * (double)shared;
	t->sharing2 += (double)sharing * (double)sharing;
	t->frames_saved2 += (double)saved * (double)saved;
	t->within2 += (double)within * (double)within;
	t->between2 += (double)(spaces - 1) * (double)(spaces - 1);
	t->merging2 += (double)n * (double)n;
	if (gr->room) {
		g = segment_of(gr->s, member[0]);
		offer_top(gr, &(struct pm_census_top){
			.hash = hash, .pages = n, .frames = frames, .spaces = spaces, .regions = regions, .region = g->region,
			.page = g->base + (c->pos[member[0]] & PM_POS_MASK),
		});
	}
	return 0;
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

			if (!segment_counts(c, seg))
				continue;
			if (c->pos[i] & PM_REC_VOLATILE) {
				info->volatile_++;
				t->volatile_++;
				t->volatile2 += 1;
				if (c->pos[i] & PM_REC_ZERO) {
					info->zero--;
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
	struct sorter s = { .c = c };
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

		error = sort_records(&s);
		if (!error)
			error = count_groups(&gr);
		bytes += s.n * sizeof(*s.order) + s.buckets * sizeof(*s.bucket) + (c->held >> HINT_SHIFT) * sizeof(*s.hint);
		if (bytes > c->peak_bytes)
			c->peak_bytes = bytes;
		sorter_deinit(&s);
	}
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

int pm_census_frames_known(const struct pm_census *c)
{
	return c->frames_known;
}

uint64_t pm_census_bytes(const struct pm_census *c)
{
	return c->peak_bytes;
}
