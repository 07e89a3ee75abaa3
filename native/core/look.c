/* SPDX-License-Identifier: MIT */
/*
 * A pass over a process: what the kernel says of each page, and what follows from it.
 *
 * First look: write-protect, read nothing.  Second look: not written since, so it is read and matched.  After that an
 * unchanged page costs its share of one PAGEMAP_SCAN call and of a walk over state bytes.
 */
#include "scanner.h"

#include <errno.h>
#include <string.h>

/*
 * smart_scan: a page's visits 0, 1, 2, 3, 5, 8, 13, 22, 31, ... (then every ninth) look at it, the others skip it.  The
 * count is kept in five bits: after 22 it goes round from 14.
 */
static const uint32_t DUE = 1u << 0 | 1u << 1 | 1u << 2 | 1u << 3 | 1u << 5 | 1u << 8 | 1u << 13 | 1u << 22;
static const uint64_t READ_BYTES = 16u << 20; /* in one call, which then ends early: some 10 ms */
enum { VISIT_LAST = 22, VISIT_AGAIN = 14, VISITS = 31, BLOCK = 64, WHOLE_PASSES = 16, RECALL_VISITS = 2, STEP_PAGES = 8192 };

struct look {
	struct pm_scanner *scanner;
	struct pm_mm *mm;
	const struct pm_region *region;
	uint64_t budget;
	uint64_t scanned;
	bool anonymous; /* nothing but anonymous memory is mapped where it looks */
	uint64_t protect_start, protect_end; /* to be write-protected in one call */
	bool protect_anonymous;
};

static bool due(uint8_t byte)
{
	return DUE >> (byte & VISITS) & 1;
}

static uint8_t next_visit(uint8_t byte)
{
	uint8_t visits = byte & VISITS;

	return (uint8_t)((byte & ~VISITS) | (visits >= VISIT_LAST ? VISIT_AGAIN : visits + 1));
}

/* Count a visit; whether the page is to be looked at in it. */
static bool visit(struct look *look, struct pm_chunk *chunk, uint32_t i)
{
	uint8_t byte = chunk->state[i];

	if (!look->scanner->knobs.smart_scan) {
		look->scanned++;
		return true;
	}
	chunk->state[i] = next_visit(byte);
	if (due(byte)) {
		look->scanned++;
		return true;
	}
	look->scanner->counts.pages_skipped++;
	return false;
}

static void protect_flush(struct look *look)
{
	if (look->protect_end > look->protect_start)
		pm_track_protect(&look->mm->track, look->protect_anonymous ? PM_PROTECT_ANONYMOUS : PM_PROTECT_PRIVATE, look->protect_start,
				 look->protect_end);
	look->protect_start = look->protect_end = 0;
}

/* The call picks the written private pages of its range by itself, so that one does for many pages with others between. */
static void protect(struct look *look, uint64_t address)
{
	if (!look->protect_end) {
		look->protect_start = address;
		look->protect_anonymous = true;
	}
	look->protect_anonymous = look->protect_anonymous && look->anonymous;
	look->protect_end = address + PM_PAGE_SIZE;
}

/* A block of pages of which all are in one settled state needs no look at each.  Their number, or 0. */
static uint32_t settled(struct look *look, struct pm_chunk *chunk, uint32_t i, uint32_t n, unsigned int state)
{
	uint8_t *bytes = chunk->state + i;
	uint8_t differ = 0, other = 0;

	if (n > BLOCK)
		n = BLOCK;
	if (look->scanned + n > look->budget)
		return 0;
	for (uint32_t k = 0; k < n; k++) {
		differ |= bytes[k] ^ (uint8_t)(state << 5);
		other |= bytes[k] ^ bytes[0];
	}
	if (differ & ~VISITS)
		return 0;
	if (state == PM_MERGED || !look->scanner->knobs.smart_scan) {
		look->scanned += n;
		return n;
	}
	if (other)
		return 0;
	if (due(bytes[0]))
		look->scanned += n;
	else
		look->scanner->counts.pages_skipped += n;
	memset(bytes, next_visit(bytes[0]), n);
	return n;
}

/* A page that nothing is known of, or whose content has changed: look one. */
static void look_anew(struct look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	bool look_now = visit(look, chunk, i);
	/* Kept, since an agent's barrier makes pages look written: the sum tells whether the content is still the same. */
	bool differs = pm_page_state(chunk, i) == PM_LOOKED && chunk->link[i] == PM_LINK_DIFFERS;

	pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
	if (differs)
		chunk->link[i] = PM_LINK_DIFFERS;
	if (is & PM_IS_WRITTEN && look_now)
		protect(look, pm_chunk_address(chunk, i));
	else if (is & PM_IS_WRITTEN)
		protect_flush(look); /* skipped: stays as it is */
}

static bool is_known(const struct pm_chunk *chunk, uint32_t i)
{
	return chunk->link[i] == PM_LINK_KNOWN || chunk->link[i] == PM_LINK_LEFT;
}

static void private_tracked(struct look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	unsigned int state = pm_page_state(chunk, i);
	bool known, wait;

	if (is & PM_IS_WRITTEN || state == PM_NONE) {
		look_anew(look, chunk, i, is);
		return;
	}
	if (state == PM_UNSHARED) {
		visit(look, chunk, i);
		return;
	}
	known = is_known(chunk, i);
	wait = known && !due(chunk->state[i]);
	/* Unchanged for the first time: read now, however old the page is; it is read only once. */
	chunk->state[i] = next_visit(chunk->state[i]);
	look->scanned++;
	if (wait || (known && pm_match_known(look->scanner, chunk, i)))
		return;
	pm_candidate_add(look->scanner, chunk, i, true);
}

static void private_untracked(struct look *look, struct pm_chunk *chunk, uint32_t i)
{
	/* What could not be merged though a twin is there is tried again ever more rarely, smart_scan or not. */
	bool known = pm_page_state(chunk, i) == PM_LOOKED && is_known(chunk, i);
	bool wait = known && !due(chunk->state[i]);
	bool look_now = visit(look, chunk, i);

	if (known && !look->scanner->knobs.smart_scan)
		chunk->state[i] = next_visit(chunk->state[i]);
	if (pm_page_state(chunk, i) == PM_NONE) {
		chunk->sum[i] = 0;
		chunk->link[i] = PM_REF_NONE;
		pm_set_state(chunk, i, PM_LOOKED);
	}
	if (look_now && !wait)
		pm_candidate_add(look->scanner, chunk, i, false);
}

/*
 * The private copy of a page in a mapping of a pool that is retired or not ours: as long as the mapping is there, the
 * kernel keeps that pool's memory, so that it has to become anonymous again even where nothing of the pool is used.
 */
static bool recall_copy(struct look *look, struct pm_chunk *chunk, uint32_t i)
{
	unsigned int state = pm_page_state(chunk, i);
	const struct pm_part *part = pm_mm_part(look->mm, pm_chunk_address(chunk, i));
	uint8_t visits = chunk->state[i] & VISITS;

	if (!part || part->slot != PM_NO_SLOT || look->mm->deaf)
		return false;
	chunk->plain = false;
	chunk->state[i] = next_visit(chunk->state[i]);
	if (state == PM_NONE || visits < RECALL_VISITS)
		return false;
	look->scanned++;
	pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
	pm_set_state(chunk, i, PM_RECALLED);
	return true;
}

/* A present private page: anonymous memory, or the private copy of a page that was merged. */
static void look_private(struct look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	switch (pm_page_state(chunk, i)) {
	case PM_PENDING:
	case PM_ASKED:
	case PM_RECALLED:
		look->scanned++;
		return; /* the answer decides */
	case PM_MERGED:
	case PM_ZEROED:
		look->mm->breaks++;
		look->scanner->counts.breaks++;
		pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
		chunk->sum[i] = 0;
		break;
	default:
		break;
	}
	if (look->mm->foreign && recall_copy(look, chunk, i))
		return;
	if (look->region->tracked && is & PM_IS_WPALLOWED && !(is & PM_IS_HUGE)) {
		private_tracked(look, chunk, i, is);
	} else if (look->region->tracked && !(is & PM_IS_HUGE)) {
		chunk->plain = false;
		/* A mapping made since the regions were read: it gets its tracking with the next refresh. */
		look->mm->stale = true;
		visit(look, chunk, i);
		pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
	} else {
		chunk->plain = false;
		chunk->huge |= (is & PM_IS_HUGE) != 0;
		private_untracked(look, chunk, i);
	}
}

/* A page mapped from a pool, present or not. */
static void look_pool(struct look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	uint64_t address = pm_chunk_address(chunk, i);
	const struct pm_part *part;
	uint32_t slot;

	switch (pm_page_state(chunk, i)) {
	case PM_PENDING:
	case PM_ASKED:
	case PM_MERGED:
	case PM_RECALLED:
		look->scanned++;
		return;
	default:
		break;
	}
	part = pm_mm_part(look->mm, address);
	if (!part) {
		if (is & PM_IS_FILE)
			look->mm->stale = true;
		return;
	}
	if (part->slot == PM_NO_SLOT) { /* a former pool's page: a candidate whose content can't change */
		unsigned int state = pm_page_state(chunk, i);

		look->scanned++;
		chunk->plain = false;
		if (state == PM_UNSHARED) {
			uint8_t visits = chunk->state[i] & VISITS;

			chunk->state[i] = next_visit(chunk->state[i]);
			if (visits >= RECALL_VISITS && !look->mm->deaf) {
				pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
				pm_set_state(chunk, i, PM_RECALLED);
			}
			return;
		}
		if (state != PM_LOOKED) {
			pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
			return;
		}
		chunk->state[i] &= (uint8_t)~VISITS;
		pm_candidate_add(look->scanner, chunk, i, true);
		return;
	}
	/* Mapped from a slot that we know: after a fork, or an answer that was lost. */
	slot = part->slot + (uint32_t)((address - part->start) >> PM_PAGE_SHIFT);
	if (!pm_slot_filled(&look->scanner->pool, slot))
		return;
	pm_page_detach(look->scanner, chunk, i, PM_NONE);
	if (pm_slot_get(&look->scanner->pool, slot))
		return;
	chunk->link[i] = slot;
	chunk->sum[i] = pm_ref_sum(&look->scanner->index, PM_REF_SLOT | slot);
	pm_set_state(chunk, i, PM_MERGED);
	pm_slot_confirm(&look->scanner->pool, slot);
	pm_slot_index(look->scanner, slot);
	look->scanned++;
}

/* Nothing is mapped at the page, or it is the kernel's zero page. */
static void look_absent(struct look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	switch (pm_page_state(chunk, i)) {
	case PM_NONE:
	case PM_PENDING:
	case PM_ASKED:
	case PM_RECALLED:
		return;
	case PM_MERGED:
		if (!(is & PM_IS_PFNZERO) && (is & (PM_IS_SWAPPED | PM_IS_WRITTEN)) != (PM_IS_SWAPPED | PM_IS_WRITTEN)) {
			/* Not touched since it was mapped, or reclaimed, leaving a protected hole: the pool's, nevertheless. */
			look->scanned++;
			return;
		}
		look->mm->breaks++;
		look->scanner->counts.breaks++;
		break;
	case PM_ZEROED:
		if (is & PM_IS_SWAPPED && is & PM_IS_WRITTEN)
			break;
		if (chunk->sum[i]) {
			chunk->sum[i] = 0;
			look->mm->zero_fresh--;
			look->scanner->zero_fresh--;
		}
		return;
	default:
		break;
	}
	pm_page_detach(look->scanner, chunk, i, PM_NONE);
}

/*
 * Look at the pages [start, end), all of one chunk and of the categories `is` (0: absent), until the budget is used up.
 * Returns where it stopped.
 */
static uint64_t look_span(struct look *look, struct pm_chunk *chunk, uint64_t start, uint64_t end, uint64_t is,
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
			n = settled(look, chunk, i, stop - i, PM_UNSHARED);
		else if (merged)
			n = settled(look, chunk, i, stop - i, PM_MERGED);
		if (n) {
			i += n;
			continue;
		}
		n = stop - i < BLOCK ? stop - i : BLOCK;
		for (; n && look->scanned < look->budget; n--, i++) {
			if (present && is & PM_IS_FILE)
				look_pool(look, chunk, i, is);
			else if (present)
				look_private(look, chunk, i, is);
			else if (pool && !(is & (PM_IS_SWAPPED | PM_IS_PFNZERO)))
				look_pool(look, chunk, i, is);
			else
				look_absent(look, chunk, i, is);
		}
	}
	return pm_chunk_address(chunk, i);
}

/* Pages that the kernel lists: they get records where they have none. */
static uint64_t look_present(struct look *look, uint64_t start, uint64_t end, uint64_t is)
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
static uint64_t look_hole(struct look *look, uint64_t start, uint64_t end)
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


/* Pages that have not been written since the last look, in a stretch where nothing else is of interest. */
static uint64_t look_quiet(struct look *look, uint64_t start, uint64_t end)
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
			n = settled(look, chunk, i, stop - i, pm_page_state(chunk, i));
			if (n) {
				i += n;
				continue;
			}
			n = stop - i < BLOCK ? stop - i : BLOCK;
			for (; n && look->scanned < look->budget; n--, i++) {
				unsigned int state = pm_page_state(chunk, i);

				if (state == PM_UNSHARED)
					visit(look, chunk, i);
				else if (state != PM_NONE && state != PM_ZEROED)
					look->scanned++;
			}
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

static int step(struct look *look, const struct pm_region *region)
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
	struct look look = {.scanner = scanner, .mm = mm, .budget = budget};
	uint64_t read_until = scanner->counts.bytes_read + READ_BYTES;
	int err = 0;

	scanner->slice++;
	while (mm->region_at < mm->nregions && look.scanned < budget && scanner->counts.bytes_read < read_until &&
	       mm->hashing < PM_HASHING_MOST) {
		const struct pm_region *region = &mm->regions[mm->region_at];

		if (mm->cursor < region->start)
			mm->cursor = region->start;
		if (mm->cursor >= region->end) {
			protect_flush(&look); /* never over memory that is no region */
			mm->region_at++;
			continue;
		}
		look.region = region;
		err = step(&look, region);
		if (err == -ESRCH)
			break;
		if (err) { /* this region can't be looked at; others may */
			mm->region_at++;
			err = 0;
		}
	}
	protect_flush(&look);
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
