/* SPDX-License-Identifier: MIT */
/* A set of address ranges, each of a kind; a later one overrides what it covers.  Its user sees to it that one thread at a time is in it. */
#ifndef PM_RANGES_H
#define PM_RANGES_H

#include "agent.h"

struct pm_ranges {
	struct pm_range *items; /* in order of their addresses, none overlapping another */
	uint32_t count;
};

bool pm_ranges_cut(struct pm_ranges *set, uint64_t start, uint64_t end); /* whether there was anything */
void pm_ranges_put(struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind);
void pm_ranges_keep(struct pm_ranges *set, uint32_t kind);						/* that kind only */
bool pm_ranges_cover(const struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind);
bool pm_ranges_touch(const struct pm_ranges *set, uint64_t start, uint64_t end, uint32_t kind); /* any part of it is */
/* The first range of a kind that ends after addr; unchanged when there is none before *start. */
void pm_ranges_next(const struct pm_ranges *set, uint64_t addr, uint32_t kind, uint64_t *start, uint64_t *end);
uint32_t pm_ranges_kind(const struct pm_ranges *set, uint64_t addr); /* 0: none */

bool pm_ranges_own(const struct pm_ranges *set, uint64_t start, uint64_t end); /* the memory of the set itself */

#endif
