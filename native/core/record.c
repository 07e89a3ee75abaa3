/* SPDX-License-Identifier: MIT */
/* Page records: every change of a page's state goes through here, so that the counts are right. */
#include "scanner.h"

#include <stdlib.h>
#include <string.h>

static bool wanted(unsigned int state)
{
	return state == PM_PENDING || state == PM_RECALLED;
}

void pm_set_state(struct pm_chunk *chunk, uint32_t i, unsigned int state)
{
	struct pm_mm *mm = chunk->mm;
	unsigned int old = chunk->state[i] >> 5;

	if (old == state)
		return;
	mm->pages[old]--;
	mm->pages[state]++;
	if (old == PM_NONE)
		chunk->used++;
	if (state == PM_NONE)
		chunk->used--;
	if (old == PM_LOOKED)
		chunk->looked--;
	if (state == PM_LOOKED)
		chunk->looked++;
	if (wanted(old) && !wanted(state)) {
		chunk->wanted--;
		mm->wanted--;
	} else if (wanted(state) && !wanted(old)) {
		chunk->wanted++;
		mm->wanted++;
	}
	/* A new page's visits start anew; others keep theirs (ksm's age is not reset by a change). */
	chunk->state[i] = (uint8_t)(state << 5 | (state == PM_NONE ? 0 : chunk->state[i] & 31));
}

void pm_page_detach(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, unsigned int state)
{
	uint32_t link = chunk->record[i].link;

	switch (pm_page_state(chunk, i)) {
	case PM_LOOKED:
		pm_page_unleave(chunk, i);
		break;
	case PM_UNSHARED:
		if (link != PM_LINK_ALONE)
			pm_index_remove(&scanner->index, pm_page_number(chunk, i), chunk->record[i].sum);
		break;
	case PM_PENDING:
	case PM_ASKED:
	case PM_MERGED:
	case PM_RECALLED:
		if (link != PM_LINK_ZERO && link != PM_REF_NONE)
			pm_slot_release(scanner, link);
		break;
	case PM_ZEROED:
		if (chunk->record[i].sum) {
			chunk->mm->zero_fresh--;
			scanner->zero_fresh--;
		}
		break;
	default:
		break;
	}
	if (scanner->tracing && state == PM_NONE && pm_page_state(chunk, i) != PM_NONE)
		pm_event(scanner, PM_EVENT_PAGE, chunk->mm->mm, pm_chunk_address(chunk, i), PM_NO_SLOT, 0);
	chunk->record[i].link = PM_REF_NONE;
	pm_set_state(chunk, i, state);
}

void pm_page_unleave(struct pm_chunk *chunk, uint32_t i)
{
	if (pm_page_state(chunk, i) == PM_LOOKED && chunk->record[i].link == PM_LINK_LEFT) {
		chunk->mm->left_for_vmas--;
		chunk->record[i].link = PM_LINK_KNOWN;
	}
}

/* ---- slots ---- */

bool pm_slot_indexed(const struct pm_scanner *scanner, uint32_t slot)
{
	const struct pm_segment *segment = pm_pool_segment(&scanner->pool, slot);
	uint32_t at = pm_slot_position(slot);

	return segment && segment->indexed[at / 8] >> (at % 8) & 1;
}

/* Slots of the index with this sum: more than one is what the kernel calls a chain with dups. */
static uint32_t copies(const struct pm_scanner *scanner, uint32_t sum)
{
	uint32_t n = 0;

	for (uint32_t ref = pm_index_first(&scanner->index, sum); ref != PM_REF_NONE;
	     ref = pm_index_next(&scanner->index, ref, sum))
		n += ref & PM_REF_SLOT ? 1 : 0;
	return n;
}

void pm_slot_index(struct pm_scanner *scanner, uint32_t slot)
{
	struct pm_segment *segment = pm_pool_segment(&scanner->pool, slot);
	uint32_t at = pm_slot_position(slot), sum = segment->record[at].sum, others;

	if (pm_slot_indexed(scanner, slot))
		return;
	others = copies(scanner, sum);
	if (others == 1)
		scanner->chains++;
	if (others)
		scanner->dups += others == 1 ? 2 : 1;
	segment->indexed[at / 8] |= (uint8_t)(1u << (at % 8));
	pm_index_insert(&scanner->index, PM_REF_SLOT | slot, sum);
}

void pm_slot_unindex(struct pm_scanner *scanner, uint32_t slot)
{
	struct pm_segment *segment = pm_pool_segment(&scanner->pool, slot);
	uint32_t at = pm_slot_position(slot), sum = segment->record[at].sum, others;

	if (!pm_slot_indexed(scanner, slot))
		return;
	segment->indexed[at / 8] &= (uint8_t)~(1u << (at % 8));
	pm_index_remove(&scanner->index, PM_REF_SLOT | slot, sum);
	others = copies(scanner, sum);
	if (others == 1)
		scanner->chains--;
	if (others)
		scanner->dups -= others == 1 ? 2 : 1;
}

void pm_slot_release(struct pm_scanner *scanner, uint32_t slot)
{
	if (!pm_slot_put(&scanner->pool, slot))
		return;
	pm_slot_unindex(scanner, slot);
	if (scanner->tracing)
		pm_event(scanner, PM_EVENT_SLOT, 0, 0, slot, 0);
}

/* ---- chunks of a process ---- */

size_t pm_mm_chunk_at(const struct pm_mm *mm, uint64_t address)
{
	uint64_t base = address & ~(PM_CHUNK_BYTES - 1);
	size_t low = 0, high = mm->nchunks;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (mm->chunks[mid]->base < base)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

struct pm_chunk *pm_mm_chunk(const struct pm_mm *mm, uint64_t address)
{
	size_t at = pm_mm_chunk_at(mm, address);

	if (at < mm->nchunks && mm->chunks[at]->base == (address & ~(PM_CHUNK_BYTES - 1)))
		return mm->chunks[at];
	return NULL;
}

struct pm_chunk *pm_mm_chunk_need(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t start, uint64_t end)
{
	uint64_t base = start & ~(PM_CHUNK_BYTES - 1);
	size_t at = pm_mm_chunk_at(mm, start);
	uint64_t before = scanner->chunks.metadata;
	uint32_t first, n;
	struct pm_chunk *chunk;

	if (end > base + PM_CHUNK_BYTES)
		end = base + PM_CHUNK_BYTES;
	first = (uint32_t)((start - base) >> PM_PAGE_SHIFT);
	n = (uint32_t)((end - start) >> PM_PAGE_SHIFT);
	if (at < mm->nchunks && mm->chunks[at]->base == base) {
		chunk = mm->chunks[at];
		if (pm_chunk_extend(&scanner->chunks, chunk, first, n))
			return NULL;
		goto out;
	}
	if (mm->nchunks == mm->chunks_cap) {
		size_t cap = mm->chunks_cap ? mm->chunks_cap * 2 : 16;
		struct pm_chunk **grown = realloc(mm->chunks, cap * sizeof(struct pm_chunk *));

		if (!grown)
			return NULL;
		mm->chunks = grown;
		mm->chunks_cap = cap;
	}
	if (pm_chunk_create(&scanner->chunks, mm, base, first, n, &chunk))
		return NULL;
	memmove(mm->chunks + at + 1, mm->chunks + at, (mm->nchunks - at) * sizeof(struct pm_chunk *));
	mm->chunks[at] = chunk;
	mm->nchunks++;
	if (mm->wanted_at > at)
		mm->wanted_at++;
out:
	mm->bytes += scanner->chunks.metadata - before;
	return chunk;
}

void pm_mm_chunks_trim(struct pm_scanner *scanner, struct pm_mm *mm)
{
	uint64_t before = scanner->chunks.metadata;
	size_t kept = 0;

	for (size_t i = 0; i < mm->nchunks; i++) {
		if (mm->chunks[i]->used)
			mm->chunks[kept++] = mm->chunks[i];
		else
			pm_chunk_destroy(&scanner->chunks, mm->chunks[i]);
	}
	mm->nchunks = kept;
	mm->wanted_at = 0;
	mm->bytes -= before - scanner->chunks.metadata;
}
