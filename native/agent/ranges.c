/* SPDX-License-Identifier: MIT */
#include "ranges.h"

#include <linux/futex.h>
#include <sys/mman.h>

enum { RANGES_MAX = 65536 };

void pm_ranges_lock(struct pm_ranges *set)
{
	uint32_t open = 0;

	while (!atomic_compare_exchange_strong(&set->lock, &open, 1)) {
		syscall(SYS_futex, &set->lock, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
		open = 0;
	}
}

void pm_ranges_unlock(struct pm_ranges *set)
{
	atomic_store(&set->lock, 0);
	syscall(SYS_futex, &set->lock, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

bool pm_ranges_cut(struct pm_ranges *set, uint64_t start, uint64_t end)
{
	bool found = false;

	for (uint32_t i = 0; i < set->count;) {
		struct pm_range *item = &set->items[i];

		if (item->end <= start || item->start >= end) {
			i++;
			continue;
		}
		found = true;
		if (item->start < start && item->end > end) {
			if (set->count < RANGES_MAX)
				set->items[set->count++] = (struct pm_range){ end, item->end, item->flags, 0 };
			item->end = start;
		} else if (item->start < start) {
			item->end = start;
		} else if (item->end > end) {
			item->start = end;
		} else {
			*item = set->items[--set->count];
			continue;
		}
		i++;
	}
	return found;
}

void pm_ranges_put(struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind)
{
	if (!set->items) {
		void *items = pm_mmap(NULL, RANGES_MAX * sizeof(*set->items), PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (items == MAP_FAILED)
			return;
		set->items = items;
	}
	pm_ranges_cut(set, start, end);
	for (uint32_t i = 0; i < set->count; i++) {
		struct pm_range *item = &set->items[i];

		if (item->flags == kind && item->end == start) {
			item->end = end;
			return;
		}
		if (item->flags == kind && item->start == end) {
			item->start = start;
			return;
		}
	}
	if (set->count < RANGES_MAX)
		set->items[set->count++] = (struct pm_range){ start, end, kind, 0 };
}

void pm_ranges_keep(struct pm_ranges *set, uint32_t kind)
{
	for (uint32_t i = 0; i < set->count;)
		if (set->items[i].flags == kind)
			i++;
		else
			set->items[i] = set->items[--set->count];
}

/* kind 0: any */
bool pm_ranges_cover(const struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind)
{
	while (start < end) {
		uint64_t before = start;

		for (uint32_t i = 0; i < set->count; i++)
			if ((!kind || set->items[i].flags == kind) && set->items[i].start <= start && start < set->items[i].end)
				start = set->items[i].end;
		if (start == before)
			return false;
	}
	return true;
}

bool pm_ranges_touch(const struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind)
{
	for (uint32_t i = 0; i < set->count; i++)
		if (set->items[i].flags == kind && set->items[i].start < end && start < set->items[i].end)
			return true;
	return false;
}

void pm_ranges_next(const struct pm_ranges *set, uint64_t addr, uint32_t kind, uint64_t *start, uint64_t *end)
{
	for (uint32_t i = 0; i < set->count; i++) {
		const struct pm_range *item = &set->items[i];

		if (item->flags == kind && item->end > addr && item->start < *start) {
			*start = item->start;
			*end = item->end;
		}
	}
}

uint32_t pm_ranges_kind(const struct pm_ranges *set, uint64_t addr)
{
	for (uint32_t i = 0; i < set->count; i++)
		if (set->items[i].start <= addr && addr < set->items[i].end)
			return set->items[i].flags;
	return 0;
}

bool pm_ranges_own(const struct pm_ranges *set, uint64_t start, uint64_t end)
{
	uint64_t from = (uintptr_t)set->items;

	return from && start < from + RANGES_MAX * sizeof(*set->items) && end > from;
}
