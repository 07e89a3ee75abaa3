/* SPDX-License-Identifier: MIT */
/*
 * What the kernel says of each page, and what follows from it.
 *
 * First look: write-protect, read nothing.  Second look: not written since, so it is read and matched.  After that an
 * unchanged page costs its share of one PAGEMAP_SCAN call and of a walk over state bytes.
 */
#include "look.h"

#include <string.h>

enum { RECALL_VISITS = 2 };

void pm_look_protect_flush(struct pm_look *look)
{
	if (look->protect_end > look->protect_start)
		pm_track_protect(&look->mm->track, look->protect_anonymous ? PM_PROTECT_ANONYMOUS : PM_PROTECT_PRIVATE, look->protect_start,
				 look->protect_end);
	look->protect_start = look->protect_end = 0;
}

/* The call picks the written private pages of its range by itself, so that one does for many pages with others between. */
static void protect(struct pm_look *look, uint64_t address)
{
	if (!look->protect_end) {
		look->protect_start = address;
		look->protect_anonymous = true;
	}
	look->protect_anonymous = look->protect_anonymous && look->anonymous;
	look->protect_end = address + PM_PAGE_SIZE;
}

/* A block of pages of which all are in one settled state needs no look at each.  Their number, or 0. */
uint32_t pm_look_settled(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint32_t n, unsigned int state)
{
	uint8_t *bytes = chunk->state + i;
	uint8_t differ = 0, other = 0;

	if (n > PM_LOOK_BLOCK)
		n = PM_LOOK_BLOCK;
	if (look->scanned + n > look->budget)
		return 0;
	for (uint32_t k = 0; k < n; k++) {
		differ |= bytes[k] ^ (uint8_t)(state << 5);
		other |= bytes[k] ^ bytes[0];
	}
	if (differ & ~PM_LOOK_VISITS)
		return 0;
	if (state == PM_MERGED || !look->scanner->knobs.smart_scan) {
		look->scanned += n;
		return n;
	}
	if (other)
		return 0;
	if (pm_look_due(bytes[0]))
		look->scanned += n;
	else
		look->scanner->counts.pages_skipped += n;
	memset(bytes, pm_look_next_visit(bytes[0]), n);
	return n;
}

/*
 * An agent has found a page to differ from what has its sum, and by its barrier has made it look written, and lose its tracking: whether it is still the same, its
 * sum tells, which is of the whole page.
 */
static bool was_found_different(const struct pm_chunk *chunk, uint32_t i)
{
	return pm_page_state(chunk, i) == PM_UNSHARED && pm_sum_is_whole(chunk->record[i].sum);
}

/* A page that nothing is known of, or whose content has changed: look one. */
static void look_anew(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	bool look_now = pm_look_visit(look, chunk, i);
	/* Kept, since an agent's barrier makes pages look written: the sum tells whether the content is still the same. */
	bool differs = pm_page_state(chunk, i) == PM_LOOKED && chunk->record[i].link == PM_LINK_DIFFERS;

	if (look_now && was_found_different(chunk, i)) {
		protect(look, pm_chunk_address(chunk, i));
		pm_look_protect_flush(look);
		pm_candidate_add(look->scanner, chunk, i, false);
		return;
	}
	pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
	if (differs)
		chunk->record[i].link = PM_LINK_DIFFERS;
	if (is & PM_IS_WRITTEN && look_now)
		protect(look, pm_chunk_address(chunk, i));
	else if (is & PM_IS_WRITTEN)
		pm_look_protect_flush(look); /* skipped: stays as it is */
}

static bool is_known(const struct pm_chunk *chunk, uint32_t i)
{
	return chunk->record[i].link == PM_LINK_KNOWN || chunk->record[i].link == PM_LINK_LEFT;
}

static void private_tracked(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
{
	unsigned int state = pm_page_state(chunk, i);
	bool known, wait;

	if (is & PM_IS_WRITTEN || state == PM_NONE) {
		look_anew(look, chunk, i, is);
		return;
	}
	if (state == PM_UNSHARED) {
		pm_look_visit(look, chunk, i);
		return;
	}
	known = is_known(chunk, i);
	wait = known && !pm_look_due(chunk->state[i]);
	/* Unchanged for the first time: read now, however old the page is; it is read only once. */
	chunk->state[i] = pm_look_next_visit(chunk->state[i]);
	look->scanned++;
	if (wait || (known && pm_match_known(look->scanner, chunk, i)))
		return;
	pm_candidate_add(look->scanner, chunk, i, true);
}

static void private_untracked(struct pm_look *look, struct pm_chunk *chunk, uint32_t i)
{
	/* What could not be merged though a twin is there is tried again ever more rarely, smart_scan or not. */
	bool known = pm_page_state(chunk, i) == PM_LOOKED && is_known(chunk, i);
	bool wait = known && !pm_look_due(chunk->state[i]);
	bool look_now = pm_look_visit(look, chunk, i);

	if (known && !look->scanner->knobs.smart_scan)
		chunk->state[i] = pm_look_next_visit(chunk->state[i]);
	if (pm_page_state(chunk, i) == PM_NONE) {
		chunk->record[i].sum = 0;
		chunk->record[i].link = PM_REF_NONE;
		pm_set_state(chunk, i, PM_LOOKED);
	}
	if (look_now && !wait)
		pm_candidate_add(look->scanner, chunk, i, false);
}

/*
 * The private copy of a page in a mapping of a pool that is retired or not ours: as long as the mapping is there, the
 * kernel keeps that pool's memory, so that it has to become anonymous again even where nothing of the pool is used.
 */
static bool recall_copy(struct pm_look *look, struct pm_chunk *chunk, uint32_t i)
{
	unsigned int state = pm_page_state(chunk, i);
	const struct pm_part *part = pm_mm_part(look->mm, pm_chunk_address(chunk, i));
	uint8_t visits = chunk->state[i] & PM_LOOK_VISITS;

	if (!part || part->slot != PM_NO_SLOT || look->mm->deaf)
		return false;
	chunk->plain = false;
	chunk->state[i] = pm_look_next_visit(chunk->state[i]);
	if (state == PM_NONE || visits < RECALL_VISITS)
		return false;
	look->scanned++;
	pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
	pm_set_state(chunk, i, PM_RECALLED);
	return true;
}

/* A present private page: anonymous memory, or the private copy of a page that was merged. */
void pm_look_private(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
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
		chunk->record[i].sum = 0;
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
		/* A mapping made since the regions were read, or one where an agent's barrier was: it gets its tracking with the next refresh. */
		look->mm->changed = true;
		if (pm_look_visit(look, chunk, i) && was_found_different(chunk, i))
			pm_candidate_add(look->scanner, chunk, i, false);
		else
			pm_page_detach(look->scanner, chunk, i, PM_LOOKED);
	} else {
		chunk->plain = false;
		chunk->huge |= (is & PM_IS_HUGE) != 0;
		private_untracked(look, chunk, i);
	}
}

/* A page mapped from a pool, present or not. */
void pm_look_pool(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
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
			look->mm->changed = true;
		return;
	}
	if (part->slot == PM_NO_SLOT) { /* a former pool's page: a candidate whose content can't change */
		unsigned int state = pm_page_state(chunk, i);

		look->scanned++;
		chunk->plain = false;
		if (state == PM_UNSHARED) {
			uint8_t visits = chunk->state[i] & PM_LOOK_VISITS;

			chunk->state[i] = pm_look_next_visit(chunk->state[i]);
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
		chunk->state[i] &= (uint8_t)~PM_LOOK_VISITS;
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
	chunk->record[i].link = slot;
	chunk->record[i].sum = pm_ref_sum(&look->scanner->index, PM_REF_SLOT | slot);
	pm_set_state(chunk, i, PM_MERGED);
	pm_slot_confirm(&look->scanner->pool, slot);
	pm_slot_index(look->scanner, slot);
	look->scanned++;
}

/* Nothing is mapped at the page, or it is the kernel's zero page. */
void pm_look_absent(struct pm_look *look, struct pm_chunk *chunk, uint32_t i, uint64_t is)
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
		if (chunk->record[i].sum) {
			chunk->record[i].sum = 0;
			look->mm->zero_fresh--;
			look->scanner->zero_fresh--;
		}
		return;
	default:
		break;
	}
	pm_page_detach(look->scanner, chunk, i, PM_NONE);
}
