/* SPDX-License-Identifier: MIT */
/* A pass over a process: which of its pages are looked at, and in what steps. */
#include "look.h"
#include "step_back.h"

#include <errno.h>

static const uint64_t READ_BYTES = 16u << 20; /* in one call, which then ends early: some 10 ms */
enum { WHOLE_PASSES = 16, STEP_PAGES = 8192 };

/*
 * Look at the pages [start, end), all of one chunk and of the categories `is` (0: absent), until the budget is used up.
 * Returns where it stopped.
 */
static uint64_t look_span(struct pm_look *look, struct pm_chunk *chunk, uint64_t start, uint64_t end, uint64_t is,
			  bool pool)
{
	uint32_t i = (uint32_t)((start - chunk->base) >> PM_PAGE_SHIFT) - chunk->first;
	uint32_t stop = (uint32_t)((end - chunk->base) >> PM_PAGE_SHIFT) - chunk->first;
	bool present = is & PM_IS_PRESENT && !(is & PM_IS_PFNZERO);
	bool quiet = present && !(is & (PM_IS_FILE | PM_IS_WRITTEN | PM_IS_HUGE)) && is & PM_IS_WPALLOWED &&
		     look->region->tracked && !look->mm->foreign;
	bool merged = present ? (is & PM_IS_FILE) != 0 : is == 0;

	/* A merged page needs no protection, but one without would be listed among the written ones. */
	if (present && merged && is & PM_IS_WRITTEN && is & PM_IS_WPALLOWED && !(is & PM_IS_HUGE) && look->mm->whole)
		pm_track_protect(&look->mm->track, PM_PROTECT_POOL, start, end);
	while (i < stop) {
		uint32_t n = 0;

		if (look->scanned >= look->budget)
			break;
		if (quiet)
			n = pm_look_settled(look, chunk, i, stop - i, PM_UNSHARED);
		else if (merged)
			n = pm_look_settled(look, chunk, i, stop - i, PM_MERGED);
		if (n) {
			i += n;
			continue;
		}
		n = stop - i < PM_LOOK_BLOCK ? stop - i : PM_LOOK_BLOCK;
		for (; n && look->scanned < look->budget; n--, i++) {
			if (present && is & PM_IS_FILE)
				pm_look_pool(look, chunk, i, is);
			else if (present)
				pm_look_private(look, chunk, i, is);
			else if (pool && !(is & (PM_IS_SWAPPED | PM_IS_PFNZERO)))
				pm_look_pool(look, chunk, i, is);
			else
				pm_look_absent(look, chunk, i, is);
		}
	}
	return pm_chunk_address(chunk, i);
}

/* Pages that the kernel lists: they get records where they have none. */
static uint64_t look_present(struct pm_look *look, uint64_t start, uint64_t end, uint64_t is)
{
	bool need = is & PM_IS_PRESENT && !(is & PM_IS_PFNZERO);

	while (start < end && look->scanned < look->budget) {
		uint64_t base = start & ~(PM_CHUNK_BYTES - 1), stop = base + PM_CHUNK_BYTES, at;
		struct pm_chunk *chunk;

		if (stop > end)
			stop = end;
		chunk = pm_mm_chunk(look->mm, start);
		if (need || chunk) {
			/* The whole stretch of the region at once: more of it is likely to come. */
			uint64_t low = look->region->start > base ? look->region->start : base;
			uint64_t high = look->region->end < base + PM_CHUNK_BYTES ? look->region->end
										  : base + PM_CHUNK_BYTES;

			chunk = pm_mm_chunk_need(look->scanner, look->mm, low, high);
		}
		if (!chunk) {
			start = stop; /* nothing known, or no memory: as if it had not been seen */
			continue;
		}
		at = look_span(look, chunk, start, stop, is, false);
		if (at < stop)
			return at;
		start = stop;
	}
	return start;
}

/* Pages that the kernel does not list. */
static uint64_t look_hole(struct pm_look *look, uint64_t start, uint64_t end)
{
	struct pm_mm *mm = look->mm;

	/* Mappings of a pool that nobody has touched: they have records only if we make them. */
	for (size_t p = pm_mm_part_at(mm, start); p < mm->nparts; p++) {
		const struct pm_part *part = &mm->parts[p];
		uint64_t low = part->start > start ? part->start : start, high = part->end < end ? part->end : end;

		if (part->start >= end)
			break;
		while (low < high) {
			uint64_t stop = (low & ~(PM_CHUNK_BYTES - 1)) + PM_CHUNK_BYTES;

			pm_mm_chunk_need(look->scanner, mm, low, stop < high ? stop : high);
			low = stop;
		}
	}
	for (size_t c = pm_mm_chunk_at(mm, start); c < mm->nchunks && mm->chunks[c]->base < end; c++) {
		struct pm_chunk *chunk = mm->chunks[c];
		uint64_t low = pm_chunk_address(chunk, 0), high = pm_chunk_address(chunk, chunk->n), at;

		if (low < start)
			low = start;
		if (high > end)
			high = end;
		while (low < high) {
			size_t p = pm_mm_part_at(mm, low);
			const struct pm_part *part = p < mm->nparts ? &mm->parts[p] : NULL;
			bool inside = part && part->start <= low;
			uint64_t stop = high;

			if (look->scanned >= look->budget)
				return low;
			if (inside && part->end < stop)
				stop = part->end;
			if (part && !inside && part->start < stop)
				stop = part->start;
			at = look_span(look, chunk, low, stop, 0, inside);
			if (at < stop)
				return at;
			low = stop;
		}
	}
	return end;
}

/* What becomes of a page that has not been written since the last look, by its state byte: a branch for each page, merged or not, would be guessed wrong too often. */
struct quiet {
	uint8_t next[256];
	uint16_t counted[256]; /* 1: scanned; SKIPPED: skipped; 0: neither */
};

enum { SKIPPED = 256 };

static const struct quiet *quiet_table(bool smart_scan)
{
	static struct quiet tables[2];
	struct quiet *table = &tables[smart_scan];

	if (table->next[255])
		return table;
	for (unsigned int byte = 0; byte < 256; byte++) {
		unsigned int state = byte >> 5;
		bool visit = smart_scan && state == PM_UNSHARED;

		table->next[byte] = visit ? pm_look_next_visit((uint8_t)byte) : (uint8_t)byte;
		table->counted[byte] = state == PM_NONE || state == PM_ZEROED ? 0 : visit && !pm_look_due((uint8_t)byte) ? SKIPPED : 1;
	}
	return table;
}

static void quiet_pages(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint32_t n)
{
	const struct quiet *table = quiet_table(look->scanner->knobs.smart_scan);
	uint8_t *bytes = chunk->state + i;
	uint32_t counted = 0;

	for (uint32_t k = 0; k < n; k++) {
		uint8_t byte = bytes[k];

		counted += table->counted[byte];
		bytes[k] = table->next[byte];
	}
	look->scanned += counted % SKIPPED;
	look->scanner->counts.pages_skipped += counted / SKIPPED;
}

/* Pages that have not been written since the last look, in a stretch where nothing else is of interest. */
static uint64_t look_quiet(struct pm_look *look, uint64_t start, uint64_t end)
{
	struct pm_mm *mm = look->mm;

	for (size_t c = pm_mm_chunk_at(mm, start); c < mm->nchunks && mm->chunks[c]->base < end; c++) {
		struct pm_chunk *chunk = mm->chunks[c];
		uint64_t low = pm_chunk_address(chunk, 0), high = pm_chunk_address(chunk, chunk->n);
		uint32_t i, stop;

		if (low < start)
			low = start;
		if (high > end)
			high = end;
		if (low >= high)
			continue;
		i = (uint32_t)((low - chunk->base) >> PM_PAGE_SHIFT) - chunk->first;
		stop = (uint32_t)((high - chunk->base) >> PM_PAGE_SHIFT) - chunk->first;
		while (i < stop) {
			uint32_t n;

			if (look->scanned >= look->budget)
				return pm_chunk_address(chunk, i);
			n = pm_look_settled(look, chunk, i, stop - i, pm_page_state(chunk, i));
			if (n) {
				i += n;
				continue;
			}
			n = stop - i < PM_LOOK_BLOCK ? stop - i : PM_LOOK_BLOCK;
			if (n > look->budget - look->scanned)
				n = (uint32_t)(look->budget - look->scanned);
			quiet_pages(look, chunk, i, n);
			i += n;
		}
	}
	return end;
}

int pm_mm_begin(struct pm_scanner *scanner, struct pm_mm *mm)
{
	int err;

	mm->whole = false;
	err = pm_mm_refresh(scanner, mm);
	if (err)
		return err;
	if (!mm->in_pass)
		scanner->in_pass++;
	mm->in_pass = true;
	mm->region_at = 0;
	mm->cursor = 0;
	if (mm->zero_fresh || ++mm->partial >= WHOLE_PASSES || !mm->track.can_scan)
		mm->whole = true;
	if (mm->whole) {
		mm->partial = 0;
		for (size_t c = 0; c < mm->nchunks; c++)
			mm->chunks[c]->plain = true; /* until something else is seen there */
	}
	if (!mm->nregions) {
		mm->in_pass = false;
		scanner->in_pass--;
		pm_mm_chunks_trim(scanner, mm);
	}
	return mm->nregions > 0;
}

/*
 * Whether only what was written need be looked for at `start`, and in *end how far that goes: over chunks that have been
 * looked at whole, and in which no page waits for its second look.
 */
static bool written_only(const struct pm_mm *mm, const struct pm_region *region, uint64_t start, uint64_t *end)
{
	size_t c = pm_mm_chunk_at(mm, start);
	bool plain = true;

	*end = region->end;
	if (mm->whole || !region->tracked)
		return false;
	if (c < mm->nchunks && mm->chunks[c]->base <= start)
		plain = mm->chunks[c]->plain && !mm->chunks[c]->looked;
	for (; c < mm->nchunks && mm->chunks[c]->base < region->end; c++) {
		const struct pm_chunk *chunk = mm->chunks[c];

		if (chunk->base > start && (chunk->plain && !chunk->looked) != plain) {
			*end = chunk->base;
			break;
		}
		if (!plain && (c + 1 == mm->nchunks || mm->chunks[c + 1]->base != chunk->base + PM_CHUNK_BYTES)) {
			if (chunk->base + PM_CHUNK_BYTES < region->end)
				*end = chunk->base + PM_CHUNK_BYTES;
			break;
		}
	}
	return plain;
}

/*
 * Whether only anonymous memory is mapped at `start`, and in *end how far that goes: where no mapping of a pool is known, and no page has been merged since the maps
 * were read.
 */
static bool anonymous_only(const struct pm_mm *mm, uint64_t start, uint64_t *end)
{
	size_t p = pm_mm_part_at(mm, start);
	uint64_t to = *end;

	if (mm->foreign)
		return false;
	if (p < mm->nparts && mm->parts[p].start < to)
		to = mm->parts[p].start;
	for (size_t c = pm_mm_chunk_at(mm, start); c < mm->nchunks && mm->chunks[c]->base < to; c++)
		if (mm->chunks[c]->used != mm->chunks[c]->looked)
			to = mm->chunks[c]->base;
	if (to <= start)
		return false;
	*end = to;
	return true;
}

static int step(struct pm_look *look, const struct pm_region *region)
{
	struct pm_mm *mm = look->mm;
	struct pm_scanner *scanner = look->scanner;
	uint64_t start = mm->cursor, left = look->budget - look->scanned, end, walked, at = start;
	bool quiet = written_only(mm, region, start, &end);
	int n;

	if (!quiet && left > STEP_PAGES)
		left = STEP_PAGES;
	/* No further than the budget can reach, or every small batch would walk all of the page tables. */
	if (quiet && left < (end - start) >> PM_PAGE_SHIFT)
		end = start + (left << PM_PAGE_SHIFT);
	look->anonymous = !quiet && region->tracked && anonymous_only(mm, start, &end);
	n = pm_track_query(&mm->track, quiet ? PM_QUERY_WRITTEN : look->anonymous ? PM_QUERY_ANONYMOUS : PM_QUERY_ALL, start, end, left, scanner->spans, PM_SPANS,
			   &walked);
	if (n < 0)
		return n;
	for (int i = 0; i < n && look->scanned < look->budget; i++) {
		const struct pm_page_region *span = &scanner->spans[i];

		if (span->start > at)
			at = quiet ? look_quiet(look, at, span->start) : look_hole(look, at, span->start);
		if (at < span->start)
			break;
		at = look_present(look, span->start, span->end, span->categories);
		if (at < span->end)
			break;
	}
	if (look->scanned < look->budget && at < walked && (n == 0 || at == scanner->spans[n - 1].end))
		at = quiet ? look_quiet(look, at, walked) : look_hole(look, at, walked);
	mm->cursor = at;
	return 0;
}

int pm_mm_scan(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t budget, uint64_t *scanned, bool *done)
{
	struct pm_look look = {.scanner = scanner, .mm = mm, .budget = budget};
	uint64_t read_until = scanner->counts.bytes_read + READ_BYTES;
	int err = 0;

	scanner->slice++;
	while (mm->region_at < mm->nregions && look.scanned < budget && scanner->counts.bytes_read < read_until &&
	       mm->hashing < PM_HASHING_MOST) {
		const struct pm_region *region = &mm->regions[mm->region_at];

		if (mm->cursor < region->start)
			mm->cursor = region->start;
		if (mm->cursor >= region->end) {
			pm_look_protect_flush(&look); /* never over memory that is no region */
			mm->region_at++;
			continue;
		}
		look.region = region;
		err = step(&look, region);
		pm_give_way();
		if (err == -ESRCH)
			break;
		if (err) { /* this region can't be looked at; others may */
			mm->region_at++;
			err = 0;
		}
	}
	pm_look_protect_flush(&look);
	pm_candidates_match(scanner);
	pm_hash_flush(mm);
	scanner->counts.pages_scanned += look.scanned;
	*scanned = look.scanned;
	*done = err || mm->region_at >= mm->nregions;
	if (*done && mm->in_pass) {
		mm->in_pass = false;
		scanner->in_pass--;
		pm_mm_chunks_trim(scanner, mm);
	}
	return err;
}
