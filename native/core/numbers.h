/* SPDX-License-Identifier: MIT */
/* What the scanner tells: counters, numbers of processes and regions, events. */
#ifndef PM_NUMBERS_H
#define PM_NUMBERS_H

#include "scanner.h"

enum { PM_NUMBERS_MAX = 64 };

struct pm_number {
	const char *name;
	int64_t value;
};

struct pm_region_numbers {
	uint64_t start, end;
	uint64_t pages, merged, zero, unshared;
	char name[PM_NAME_MAX];
};

/* Fill `out` (PM_NUMBERS_MAX entries); returns how many. */
size_t pm_counters(const struct pm_scanner *scanner, struct pm_number *out);
size_t pm_process(const struct pm_scanner *scanner, const struct pm_mm *mm, struct pm_number *out);

/* A process's regions in a new array, to be freed by the caller; their number or -ENOMEM. */
ssize_t pm_regions(const struct pm_mm *mm, struct pm_region_numbers **out);

/* The events since the last call in a new array; their number or -ENOMEM. */
ssize_t pm_take_events(struct pm_scanner *scanner, struct pm_event **out, uint64_t *lost);

bool pm_page_merged(const struct pm_mm *mm, uint64_t address);

#endif
