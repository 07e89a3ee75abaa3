/* SPDX-License-Identifier: MIT */
/* What the files of a pass share: look.c judges pages, walk.c goes over them. */
#ifndef PM_LOOK_H
#define PM_LOOK_H

#include "scanner.h"

/*
 * smart_scan: a page's visits 0, 1, 2, 3, 5, 8, 13, 22, 31, ... (then every ninth) look at it, the others skip it.  The
 * count is kept in five bits: after 22 it goes round from 14.
 */
static const uint32_t PM_LOOK_DUE = 1u << 0 | 1u << 1 | 1u << 2 | 1u << 3 | 1u << 5 | 1u << 8 | 1u << 13 | 1u << 22;
enum { PM_LOOK_VISIT_LAST = 22, PM_LOOK_VISIT_AGAIN = 14, PM_LOOK_VISITS = 31, PM_LOOK_BLOCK = 64 }; /* a block: pages that are gone through at a time */

struct pm_look {
	struct pm_scanner *scanner;
	struct pm_mm *mm;
	const struct pm_region *region;
	uint64_t budget;
	uint64_t scanned;
	bool anonymous; /* nothing but anonymous memory is mapped where it looks */
	uint64_t protect_start, protect_end; /* to be write-protected in one call */
	bool protect_anonymous;
};

static inline bool pm_look_due(uint8_t byte)
{
	return PM_LOOK_DUE >> (byte & PM_LOOK_VISITS) & 1;
}

static inline uint8_t pm_look_next_visit(uint8_t byte)
{
	uint8_t visits = byte & PM_LOOK_VISITS;

	return (uint8_t)((byte & ~PM_LOOK_VISITS) | (visits >= PM_LOOK_VISIT_LAST ? PM_LOOK_VISIT_AGAIN : visits + 1));
}

/* Count a visit; whether the page is to be looked at in it. */
static inline bool pm_look_visit(struct pm_look *look, struct pm_chunk *chunk, uint32_t i)
{
	uint8_t byte = chunk->state[i];

	if (!look->scanner->knobs.smart_scan) {
		look->scanned++;
		return true;
	}
	chunk->state[i] = pm_look_next_visit(byte);
	if (pm_look_due(byte)) {
		look->scanned++;
		return true;
	}
	look->scanner->counts.pages_skipped++;
	return false;
}

/* How many pages from `i` on, of `n`, are as they were, in `state`: counted, and done with. */
uint32_t pm_look_settled(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint32_t n, unsigned int state);
/* One page, of the categories `is`. */
void pm_look_private(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is);
void pm_look_pool(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is);
void pm_look_absent(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is);
/* Write-protect what has come together. */
void pm_look_protect_flush(struct pm_look *look);

#endif
