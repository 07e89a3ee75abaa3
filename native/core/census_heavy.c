// SPDX-License-Identifier: MIT
/*
 * Census: contents that very many pages have, when sampling.
 *
 * A sample of contents that keeps one in N misses a content with a tenth of all pages N - 1 times out of N, and takes it
 * for N such contents otherwise.  So a first look at few pages, chosen by their place, finds the contents that it
 * meets more than once or twice: all pages of these are counted, and only the places of some are kept.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "census_impl.h"

enum {
	PILOT_HITS = 4,		/* of a content in the pilot that make it heavy */
	PILOT_PAGES = 512,	/* looked at, times N: a content with 1/(30 N) of all pages has 17 of them */
	PILOT_LEAST = 1 << 14,
	CELLS_MOST = 1 << 20,	/* heavy contents times spaces */
};

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

bool pm_pilot_picks(const struct pm_census *c, uint32_t space, uint64_t page)
{
	return (uint32_t)mix((page ^ (uint64_t)space << 40) + c->salt * 0x9e3779b97f4a7c15u) <= c->pilot_threshold;
}

bool pm_heavy_keeps(const struct pm_census *c, uint64_t page)
{
	/* By address alone: what fork left shared, at one address in all, is kept in all or in none. */
	return (uint32_t)mix(page + ~c->salt * 0x9e3779b97f4a7c15u) <= c->threshold;
}

struct pm_heavy *pm_heavy_find(const struct pm_census *c, uint64_t hash)
{
	uint64_t i;

	if (!c->heavies)
		return NULL;
	for (i = hash >> 20 & c->heavy_mask; c->heavy[i].hits; i = (i + 1) & c->heavy_mask)
		if (c->heavy[i].hash == hash)
			return &c->heavy[i];
	return NULL;
}

static _Atomic uint32_t *cells(const struct pm_census *c, const struct pm_heavy *h)
{
	return &c->heavy_cells[(size_t)h->number * c->nspaces * 2];
}

void pm_heavy_count(struct pm_census *c, const struct pm_heavy *h, uint32_t space, bool alias)
{
	_Atomic uint32_t *cell = cells(c, h) + (size_t)space * 2;

	atomic_fetch_add_explicit(cell, 1, memory_order_relaxed);
	if (!alias)
		atomic_fetch_add_explicit(cell + 1, 1, memory_order_relaxed);
}

void pm_heavy_sum(const struct pm_census *c, const struct pm_heavy *h, uint64_t *pages, uint64_t *frames, uint64_t *spaces)
{
	const _Atomic uint32_t *cell = cells(c, h);
	uint64_t changed = (uint64_t)c->sample * h->volatile_;
	size_t i;

	*pages = *frames = *spaces = 0;
	for (i = 0; i < c->nspaces; i++) {
		if (!pm_space_usable(c, (uint32_t)i))
			continue;
		*pages += atomic_load_explicit(&cell[2 * i], memory_order_relaxed);
		*frames += atomic_load_explicit(&cell[2 * i + 1], memory_order_relaxed);
		*spaces += !!atomic_load_explicit(&cell[2 * i], memory_order_relaxed);
	}
	changed = changed < *pages ? changed : *pages;
	*pages -= changed;
	*frames -= changed < *frames ? changed : *frames;
	if (*spaces > *pages)
		*spaces = *pages;
}

int pm_pilot_begin(struct pm_census *c)
{
	uint64_t total = atomic_load(&c->total), pages = (uint64_t)PILOT_PAGES * c->sample;

	if (pages < PILOT_LEAST)
		pages = PILOT_LEAST;
	if (pages > total / 4) /* what is so small needs no sample; its pilot must not be all of the work */
		pages = total / 4;
	c->pilot_threshold = total ? (uint32_t)((double)pages / (double)total * UINT32_MAX) : 0;
	c->pilot_room = pages + pages / 4 + 1024;
	c->pilot_n = 0;
	c->pilot = malloc(c->pilot_room * sizeof(*c->pilot));
	return c->pilot ? 0 : -ENOMEM;
}

void pm_pilot_put(struct pm_census *c, const uint64_t *hash, size_t n)
{
	pthread_mutex_lock(&c->lock);
	if (n > c->pilot_room - c->pilot_n)
		n = c->pilot_room - c->pilot_n;
	memcpy(c->pilot + c->pilot_n, hash, n * sizeof(*hash));
	c->pilot_n += n;
	pthread_mutex_unlock(&c->lock);
}

static int by_hash(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static int by_hits(const void *a, const void *b)
{
	const struct pm_heavy *x = a, *y = b;

	if (x->hits != y->hits)
		return x->hits > y->hits ? -1 : 1;
	return (x->hash > y->hash) - (x->hash < y->hash);
}

/* The contents of the pilot with hits enough, those with the most first; how many. */
static size_t find_heavy(uint64_t *pilot, size_t n, struct pm_heavy *out)
{
	size_t i, j, found = 0;

	qsort(pilot, n, sizeof(*pilot), by_hash);
	for (i = 0; i < n; i = j) {
		for (j = i + 1; j < n && pilot[j] == pilot[i]; j++)
			;
		if (j - i >= PILOT_HITS)
			out[found++] = (struct pm_heavy){ .hash = pilot[i], .hits = (uint32_t)(j - i) };
	}
	qsort(out, found, sizeof(*out), by_hits);
	return found;
}

int pm_pilot_end(struct pm_census *c)
{
	struct pm_heavy *found = calloc(c->pilot_n / PILOT_HITS + 1, sizeof(*found));
	size_t n, most = CELLS_MOST / (c->nspaces + 1), slots = 2, i;
	int error = -ENOMEM;

	if (!found)
		goto out;
	n = find_heavy(c->pilot, c->pilot_n, found);
	if (n > most)
		n = most;
	while (slots < 2 * n + 2)
		slots *= 2;
	c->heavy = calloc(slots, sizeof(*c->heavy));
	c->heavy_cells = pm_census_reserve(n * c->nspaces * 2 * sizeof(*c->heavy_cells));
	if (!c->heavy || !c->heavy_cells)
		goto out;
	c->heavy_mask = slots - 1;
	c->heavies = n;
	for (i = 0; i < n; i++) {
		uint64_t at = found[i].hash >> 20 & c->heavy_mask;

		while (c->heavy[at].hits)
			at = (at + 1) & c->heavy_mask;
		c->heavy[at] = found[i];
		c->heavy[at].number = (uint32_t)i;
	}
	error = 0;
out:
	free(found);
	free(c->pilot);
	c->pilot = NULL;
	return error;
}

void pm_heavy_deinit(struct pm_census *c)
{
	size_t bytes = c->heavies * c->nspaces * 2 * sizeof(*c->heavy_cells);

	if (c->heavy_cells)
		munmap((void *)c->heavy_cells, bytes ? bytes : 1);
	free(c->heavy);
	free(c->pilot);
}
