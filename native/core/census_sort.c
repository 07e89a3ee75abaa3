// SPDX-License-Identifier: MIT
/* Census: records in the order of their hashes, through an index. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "census_impl.h"

enum { BUCKET_RECORDS = 1024, BUCKETS_MAX = 1 << 16 };

/* run_threads() passes the census alone; sorting is the only user, and one at a time. */
static struct pm_sorter *sorting;

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
	struct pm_sorter *s = sorting;

	for (;;) {
		uint64_t i = atomic_fetch_add(&c->next, 1);

		if (i >= s->buckets || atomic_load(&c->cancelled))
			return NULL;
		sort_range(c->hash, s->order + s->bucket[i], (size_t)(s->bucket[i + 1] - s->bucket[i]));
	}
}

static bool sortable(const struct pm_sorter *s, uint64_t record)
{
	/* what was merged in the first half holds its group's number in place of its hash */
	return !(s->c->pos[record] & (PM_REC_VOLATILE | PM_REC_ZERO | PM_REC_MERGED)) && s->c->hash[record] >> 63 == s->half;
}

static size_t bucket_of(const struct pm_sorter *s, uint64_t record)
{
	return s->shift == 64 ? 0 : (size_t)(s->c->hash[record] << 1 >> s->shift);
}

void pm_sorter_deinit(struct pm_sorter *s)
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
int pm_census_sort(struct pm_sorter *s)
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
	s->hint = malloc(((c->held >> PM_HINT_SHIFT) + 2) * sizeof(*s->hint));
	if (!s->bucket || !next || !s->hint) {
		free(next);
		return -ENOMEM;
	}
	for (g = 0; g < c->nsegments; g++) {
		const struct pm_segment *seg = &c->segments[g];
		uint64_t i;

		for (i = seg->first; i < seg->first + seg->count; i++) {
			if (!(i & ((1u << PM_HINT_SHIFT) - 1)))
				s->hint[i >> PM_HINT_SHIFT] = (uint32_t)g;
			if (pm_segment_counts(c, seg) && sortable(s, i))
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

		if (!pm_segment_counts(c, seg))
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

const struct pm_segment *pm_segment_of(const struct pm_sorter *s, uint64_t record)
{
	const struct pm_segment *g = &s->c->segments[s->hint[record >> PM_HINT_SHIFT]];

	while (record >= g->first + g->count)
		g++;
	return g;
}
