/* SPDX-License-Identifier: MIT */
#include "ranges.h"

#include <string.h>
#include <sys/mman.h>

enum { RANGES_MAX = 65536 };

/* The first item that ends after addr. */
static uint32_t first_after(const struct pm_ranges *set, uint64_t addr)
{
	uint32_t low = 0, high = set->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (set->items[middle].end > addr)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* Put `n` items in the place of those in [from, to). */
static void splice(struct pm_ranges *set, uint32_t from, uint32_t to, const struct pm_range *items, uint32_t n)
{
	if (n > to - from && set->count - (to - from) + n > RANGES_MAX)
		n = to - from; /* full: what does not fit is forgotten */
	memmove(set->items + from + n, set->items + to, (set->count - to) * sizeof(*items));
	memcpy(set->items + from, items, n * sizeof(*items));
	set->count = set->count - (to - from) + n;
}

bool pm_ranges_cut(struct pm_ranges *set, uint64_t start, uint64_t end)
{
	uint32_t from = first_after(set, start), to = from, n = 0;
	struct pm_range rest[2];

	while (to < set->count && set->items[to].start < end)
		to++;
	if (from == to)
		return false;
	if (set->items[from].start < start) {
		rest[n] = set->items[from];
		rest[n++].end = start;
	}
	if (set->items[to - 1].end > end) {
		rest[n] = set->items[to - 1];
		rest[n++].start = end;
	}
	splice(set, from, to, rest, n);
	return true;
}

void pm_ranges_put(struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind)
{
	struct pm_range whole = { start, end, kind, 0 };
	uint32_t from, to;

	if (!set->items) {
		void *items = pm_mmap(NULL, RANGES_MAX * sizeof(*set->items), PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (items == MAP_FAILED)
			return;
		set->items = items;
	}
	pm_ranges_cut(set, start, end);
	from = to = first_after(set, start);
	if (from && set->items[from - 1].end == start && set->items[from - 1].flags == kind)
		whole.start = set->items[--from].start;
	if (to < set->count && set->items[to].start == end && set->items[to].flags == kind)
		whole.end = set->items[to++].end;
	splice(set, from, to, &whole, 1);
}

void pm_ranges_keep(struct pm_ranges *set, uint32_t kind)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < set->count; i++)
		if (set->items[i].flags == kind)
			set->items[n++] = set->items[i];
	set->count = n;
}

/* kind 0: any */
bool pm_ranges_cover(const struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind)
{
	for (uint32_t i = first_after(set, start); start < end; i++) {
		if (i == set->count || set->items[i].start > start || (kind && set->items[i].flags != kind))
			return false;
		start = set->items[i].end;
	}
	return true;
}

bool pm_ranges_touch(const struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind)
{
	for (uint32_t i = first_after(set, start); i < set->count && set->items[i].start < end; i++)
		if (set->items[i].flags == kind)
			return true;
	return false;
}

void pm_ranges_next(const struct pm_ranges *set, uint64_t addr, uint32_t kind, uint64_t *start, uint64_t *end)
{
	for (uint32_t i = first_after(set, addr); i < set->count && set->items[i].start < *start; i++)
		if (set->items[i].flags == kind) {
			*start = set->items[i].start;
			*end = set->items[i].end;
			return;
		}
}

uint32_t pm_ranges_kind(const struct pm_ranges *set, uint64_t addr)
{
	uint32_t i = first_after(set, addr);

	return i < set->count && set->items[i].start <= addr ? set->items[i].flags : 0;
}

bool pm_ranges_own(const struct pm_ranges *set, uint64_t start, uint64_t end)
{
	uint64_t from = (uintptr_t)set->items;

	return from && start < from + RANGES_MAX * sizeof(*set->items) && end > from;
}
