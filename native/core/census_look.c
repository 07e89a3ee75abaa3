// SPDX-License-Identifier: MIT
/* Census: the second look, which finds the pages that change. */
#include <errno.h>
#include <unistd.h>

#include "census_impl.h"
#include "page.h"

/* Which of these pages are still present anonymous ones, so that reading them faults nothing in. */
static int check_present(const struct pm_space *s, const uint64_t *page, unsigned int n, bool *there, bool *common)
{
	unsigned int i = 0, k;

	while (i < n) {
		uint64_t map[PM_CHUNK];
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

static int look_at_chunk(struct pm_reader *rd, const struct pm_segment *g, uint64_t first, unsigned int n)
{
	struct pm_census *c = rd->c;
	const struct pm_region *r = &c->regions[g->region];
	const struct pm_space *s = &c->spaces[r->space];
	uint64_t page[PM_CHUNK] = { 0 }, record[PM_CHUNK];
	bool there[PM_CHUNK], common[PM_CHUNK], got[PM_CHUNK];
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
	error = k ? pm_census_fetch(s, r->offset - (r->start << PM_PAGE_SHIFT), rd->buffer, page, common, k, got) : 0;
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
	struct pm_reader *rd = pm_reader_create(c);

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
		for (at = g->first; at < end && atomic_load(&s->state) == PM_SPACE_READ; at += PM_CHUNK) {
			unsigned int n = end - at < PM_CHUNK ? (unsigned int)(end - at) : PM_CHUNK;
			int error = look_at_chunk(rd, g, at, n);

			if (error)
				pm_census_fail(s, -error);
			atomic_fetch_add_explicit(&c->done, n, memory_order_relaxed);
		}
	}
	pm_reader_destroy(rd);
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
