/* SPDX-License-Identifier: MIT */
/* The end of a pass: segments that are dead or mostly dead. */
#include "scanner.h"

#include <stdlib.h>

enum {
	RETIRE_DEAD = 256,  /* slots: 1 MiB, below which moving things is not worth it */
	RETIRE_PART = 4,    /* dead slots are more than one in so many */
	RETIRE_STEADY = 2,  /* passes without change: a workload that is just ending ends first */
	IDLE_PASSES = 2,
};

/* Take a segment's contents out of the index; the pages mapped from it become candidates again. */
void pm_segment_retire(struct pm_scanner *scanner, struct pm_segment *segment)
{
	for (uint32_t at = 0; at < PM_SEGMENT_PAGES; at++)
		pm_slot_unindex(scanner, segment->id << PM_SEGMENT_SHIFT | at);
	for (struct pm_mm *mm = scanner->mms; mm; mm = mm->next) {
		for (size_t c = 0; c < mm->nchunks; c++) {
			struct pm_chunk *chunk = mm->chunks[c];

			for (uint32_t i = 0; i < chunk->n; i++) {
				unsigned int state = pm_page_state(chunk, i);

				if ((state == PM_MERGED || state == PM_PENDING) &&
				    chunk->record[i].link >> PM_SEGMENT_SHIFT == segment->id) {
					pm_page_detach(scanner, chunk, i, PM_LOOKED);
					mm->stale = true;
				}
			}
		}
	}
	pm_pool_retire(&scanner->pool, segment);
	scanner->counts.segments_retired++;
}

/* Whether a known process still maps a retired segment; only for the numbers: the kernel keeps what is mapped. */
static bool mapped(const struct pm_scanner *scanner, const struct pm_segment *segment)
{
	for (const struct pm_mm *mm = scanner->mms; mm; mm = mm->next)
		for (size_t p = 0; mm->foreign && p < mm->nparts; p++)
			if (mm->parts[p].segment == segment->id)
				return true;
	return false;
}

static bool is_of(uint32_t slot, uint32_t id)
{
	return slot != PM_NO_SLOT && slot >> PM_SEGMENT_SHIFT == id;
}

/* Numbers of segments are used again: no window may be left that would then lie in a segment of somebody else's. */
static void forget_windows(struct pm_scanner *scanner, uint32_t id)
{
	for (int node = 0; node < PM_NODES_MAX; node++)
		if (is_of(scanner->spill[node], id))
			scanner->spill[node] = PM_NO_SLOT;
	for (struct pm_mm *mm = scanner->mms; mm; mm = mm->next) {
		if (is_of(mm->spill, id))
			mm->spill = PM_NO_SLOT;
		if (mm->giving == id)
			mm->giving = PM_NO_SLOT;
		for (size_t c = 0; c < mm->nchunks; c++)
			if (is_of(mm->chunks[c]->window, id))
				mm->chunks[c]->window = PM_NO_SLOT;
	}
}

static void drop(struct pm_scanner *scanner, struct pm_segment *segment)
{
	forget_windows(scanner, segment->id);
	for (struct pm_mm *mm = scanner->mms; mm; mm = mm->next)
		for (size_t p = 0; p < mm->nparts; p++) {
			struct pm_part *part = &mm->parts[p];

			if (part->segment == segment->id)
				part->segment = PM_NO_SLOT;
			if (part->slot != PM_NO_SLOT && part->slot >> PM_SEGMENT_SHIFT == segment->id) {
				part->slot = PM_NO_SLOT;
				mm->foreign = true;
				mm->stale = true;
			}
		}
	pm_pool_drop(&scanner->pool, segment);
	scanner->counts.segments_dropped++;
}

/*
 * One of two pages was not, or no more, what it was taken for, and the other has been merged with nobody: it becomes its process's own again.  Not where that would keep a program from
 * its work: such a page costs no more than one of its own, and the next with its content will be merged with it.
 */
static void part_lone(struct pm_scanner *scanner)
{
	size_t words = (size_t)scanner->pool.nsegments * PM_SEGMENT_PAGES / 64, some = 0, kept = 0;
	uint64_t *lone = scanner->nlone ? calloc(words, sizeof(*lone)) : NULL; /* a bit for each slot */

	for (size_t k = 0; lone && k < scanner->nlone; k++) {
		uint32_t slot = scanner->lone[k];
		const struct pm_segment *segment = pm_pool_segment(&scanner->pool, slot);

		if (segment && segment->state == PM_SEGMENT_LIVE && pm_slot_users(&scanner->pool, slot) == 1) {
			lone[slot / 64] |= 1ull << slot % 64;
			some++;
		}
	}
	for (const struct pm_mm *mm = scanner->mms; mm && some; mm = mm->next)
		for (size_t c = 0; c < mm->nchunks; c++) {
			struct pm_chunk *chunk = mm->chunks[c];

			for (uint32_t i = 0; i < chunk->n; i++) {
				uint32_t slot = chunk->record[i].link;

				if (pm_page_state(chunk, i) != PM_MERGED || !(lone[slot / 64] >> slot % 64 & 1))
					continue;
				if (!mm->at_work)
					pm_set_state(chunk, i, PM_RECALLED);
				lone[slot / 64] &= ~(1ull << slot % 64);
			}
		}
	for (size_t k = 0; lone && k < scanner->nlone; k++) { /* those whose page is just being merged */
		uint32_t slot = scanner->lone[k];

		if (lone[slot / 64] >> slot % 64 & 1)
			scanner->lone[kept++] = slot;
		lone[slot / 64] &= ~(1ull << slot % 64);
	}
	scanner->nlone = kept;
	free(lone);
}

void pm_end_pass(struct pm_scanner *scanner)
{
	part_lone(scanner);
	for (uint32_t id = 0; id < scanner->pool.nsegments; id++) {
		struct pm_segment *segment = scanner->pool.segments[id];
		uint32_t dead;

		if (!segment || segment->open)
			continue;
		dead = segment->written - segment->live;
		if (segment->live) {
			segment->idle = 0;
		} else if (segment->state == PM_SEGMENT_RETIRED && mapped(scanner, segment)) {
			continue;
		} else if (++segment->idle >= IDLE_PASSES) {
			drop(scanner, segment);
			continue;
		}
		segment->steady = dead == segment->dead_before ? (uint8_t)(segment->steady + (segment->steady < 255)) : 0;
		segment->dead_before = dead;
		if (segment->state == PM_SEGMENT_LIVE && segment->live && dead >= RETIRE_DEAD &&
		    dead > segment->written / RETIRE_PART && segment->steady >= RETIRE_STEADY)
			pm_segment_retire(scanner, segment);
	}
}

uint64_t pm_metadata(const struct pm_scanner *scanner)
{
	return scanner->chunks.metadata + scanner->pool.metadata + pm_index_metadata(&scanner->index);
}
