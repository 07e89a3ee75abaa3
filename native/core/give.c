/* SPDX-License-Identifier: MIT */
/*
 * Pages that their own process hashes, and writes to the pool.
 *
 * Reading another process's pages costs twice what looking at them in place does, and a page that is written to the pool by its own process needs no
 * comparison with it.  Such a segment is "open" while its donor, and nobody else, may write to it; then it is sealed for good (F_SEAL_WRITE), and others may be
 * asked to map it.  Whoever was to share what the donor did not write after all is a candidate again.
 */
#include "scanner.h"

#include <stdlib.h>
#include <string.h>

enum { DENSE = 2 }; /* a batch is worth it when it lies within so many times its pages */

/* ---- hashes ---- */

enum { DECIDED = 1, WHOLE = 2 }; /* pm_run.flags: unchanged since the first look by write tracking; the key's high half is needed */

static bool needs_whole(const struct pm_scanner *scanner, const struct pm_chunk *chunk, uint32_t i)
{
	return scanner->whole || chunk->record[i].link == PM_LINK_DIFFERS || pm_sum_is_whole(chunk->record[i].sum);
}

bool pm_hash_want(struct pm_scanner *scanner, const struct pm_batch *batch)
{
	const struct pm_candidate *c = batch->candidates;
	struct pm_mm *mm = c->chunk->mm;
	uint64_t span = c[batch->n - 1].address - c->address;
	struct pm_request *request = mm->collecting, **last;

	if (!mm->gives || mm->deaf || scanner->anew || span >> PM_PAGE_SHIFT > DENSE * batch->n ||
	    (!scanner->knobs.merge_across_nodes && scanner->nodes > 1))
		return false;
	if (!request) {
		request = calloc(1, sizeof(*request) + PM_HASH_PAGES * sizeof(struct pm_run));
		if (!request)
			return false;
		request->type = PM_HASH;
		for (last = &mm->to_hash; *last; last = &(*last)->next)
			;
		*last = mm->collecting = request;
		mm->hashing++;
		scanner->hashing++;
	}
	for (size_t i = 0; i < batch->n; i++) {
		struct pm_run *run = request->n ? &request->runs[request->n - 1] : NULL;
		uint32_t flags = (c[i].decided ? DECIDED : WHOLE) | (needs_whole(scanner, c[i].chunk, c[i].i) ? WHOLE : 0);

		if (run && run->addr + (uint64_t)run->npages * PM_PAGE_SIZE == c[i].address && run->flags == flags)
			run->npages++;
		else
			request->runs[request->n++] = (struct pm_run){.addr = c[i].address, .npages = 1, .flags = flags};
	}
	request->pages += (uint32_t)batch->n;
	if (request->pages + PM_READ_PAGES > PM_HASH_PAGES || request->n + PM_READ_PAGES > PM_MESSAGE_MAX / sizeof(struct pm_range))
		pm_hash_flush(mm);
	return true;
}

void pm_hash_flush(struct pm_mm *mm)
{
	mm->collecting = NULL;
}

bool pm_hash_take(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request_out *out)
{
	struct pm_header *header = (struct pm_header *)(void *)scanner->datagram;
	struct pm_range *ranges = (struct pm_range *)(void *)(header + 1);
	struct pm_request *request = mm->to_hash, **last;

	if (!request || request == mm->collecting)
		return false;
	mm->to_hash = request->next;
	request->next = NULL;
	request->seq = ++scanner->seq;
	for (uint32_t i = 0; i < request->n; i++)
		ranges[i] = (struct pm_range){.start = request->runs[i].addr,
					      .end = request->runs[i].addr + (uint64_t)request->runs[i].npages * PM_PAGE_SIZE,
					      .flags = request->runs[i].flags & WHOLE ? PM_HASH_WHOLE : 0};
	*header = (struct pm_header){.type = PM_HASH, .count = request->n, .seq = request->seq};
	for (last = &mm->asked; *last; last = &(*last)->next)
		;
	*last = request;
	*out = (struct pm_request_out){.seq = request->seq, .datagram = scanner->datagram,
				       .length = sizeof(*header) + request->n * sizeof(*ranges)};
	return true;
}

static void leave(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request *request)
{
	if (request->type != PM_HASH || request->late)
		return;
	request->late = true;
	mm->hashing--;
	scanner->hashing--;
}

void pm_hash_forget(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request *request)
{
	leave(scanner, mm, request);
	free(request);
}

void pm_give_stop(struct pm_scanner *scanner, struct pm_mm *mm)
{
	mm->gives = false;
	pm_hash_flush(mm);
	for (struct pm_request *request = mm->asked; request; request = request->next)
		leave(scanner, mm, request);
	for (struct pm_request *request = mm->to_hash; request; request = request->next)
		leave(scanner, mm, request);
	pm_give_close(scanner, mm, true);
}

/* The next pages of a request as a batch; where it goes on in *run and *page. */
static void next_batch(struct pm_mm *mm, const struct pm_request *request, uint32_t *run, uint32_t *page, struct pm_batch *batch)
{
	batch->n = 0;
	while (*run < request->n && batch->n < PM_READ_PAGES) {
		const struct pm_run *at = &request->runs[*run];
		uint64_t address = at->addr + (uint64_t)*page * PM_PAGE_SIZE;
		struct pm_chunk *chunk = pm_mm_chunk(mm, address);
		uint32_t i = chunk ? (uint32_t)((address - chunk->base) >> PM_PAGE_SHIFT) - chunk->first : 0;

		if (chunk && i >= chunk->n) /* records may have gone meanwhile, with the mapping */
			chunk = NULL;
		batch->candidates[batch->n++] = (struct pm_candidate){.chunk = chunk, .i = i, .address = address, .decided = at->flags & DECIDED};
		if (++*page == at->npages) {
			++*run;
			*page = 0;
		}
	}
}

int pm_hash_answer(struct pm_scanner *scanner, struct pm_mm *mm, const struct pm_header *header, const void *body, size_t bytes)
{
	struct pm_request **at = &mm->asked, *request;
	struct pm_batch *batch = &scanner->hashed;
	const char *hashes = (const char *)body + sizeof(struct pm_hashes);
	struct pm_hashes head;
	uint32_t run = 0, page = 0;

	while (*at && (*at)->seq != header->seq)
		at = &(*at)->next;
	request = *at;
	if (!request || request->type != PM_HASH || request->pages != header->count || bytes != sizeof(struct pm_hashes) + header->count * sizeof(uint64_t))
		return -EINVAL;
	*at = request->next;
	memcpy(&head, body, sizeof(head));
	mm->at_work = head.at_work;
	batch->mm = mm;
	for (;;) {
		next_batch(mm, request, &run, &page, batch);
		if (!batch->n)
			break;
		memcpy(batch->keys, hashes, batch->n * sizeof(uint64_t));
		hashes += batch->n * sizeof(uint64_t);
		batch->bytes_read = batch->hashed = batch->read_errors = 0;
		for (size_t i = 0; i < batch->n; i++)
			if (!batch->keys[i]) {
				batch->candidates[i].chunk = NULL;
				batch->read_errors++;
			} else {
				batch->hashed++;
			}
		batch->bytes_read = (uint64_t)batch->hashed * PM_PAGE_SIZE;
		pm_match_hashed(scanner, batch);
	}
	pm_hash_forget(scanner, mm, request);
	return 0;
}

/* ---- slots ---- */

bool pm_gives_window(const struct pm_scanner *scanner, const struct pm_chunk *chunk)
{
	const struct pm_segment *segment = chunk->window == PM_NO_SLOT ? NULL : pm_pool_segment(&scanner->pool, chunk->window);

	return segment && segment->open && segment->donor == chunk->mm->mm;
}

static bool take_window(struct pm_scanner *scanner, struct pm_mm *mm, uint32_t *window)
{
	int created = pm_pool_given_window(&scanner->pool, mm->mm, &mm->giving, window);

	if (created >= 0) {
		mm->unclosed += (uint32_t)created;
		return true;
	}
	scanner->counts.write_errors++;
	*window = PM_NO_SLOT;
	return false;
}

uint32_t pm_give_slot(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, const struct pm_chunk *other)
{
	struct pm_mm *mm = chunk->mm;
	const struct pm_segment *segment;
	uint32_t slot;

	/* As in match.c's slot_for: each page at its own position, but for the second of two in one stretch. */
	mm->given++;
	if (other != chunk) {
		if (!pm_gives_window(scanner, chunk)) {
			if (!take_window(scanner, mm, &chunk->window))
				return PM_NO_SLOT;
		}
		slot = chunk->window + chunk->first + i;
		if (!pm_slot_filled(&scanner->pool, slot))
			return slot;
	}
	do {
		segment = mm->spill == PM_NO_SLOT ? NULL : pm_pool_segment(&scanner->pool, mm->spill);
		if (!segment || !segment->open || segment->donor != mm->mm || mm->spill_used == PM_WINDOW_PAGES) {
			if (!take_window(scanner, mm, &mm->spill))
				return PM_NO_SLOT;
			mm->spill_used = 0;
		}
		slot = mm->spill + mm->spill_used++;
	} while (pm_slot_filled(&scanner->pool, slot));
	return slot;
}

bool pm_may_give(const struct pm_scanner *scanner, const struct pm_chunk *chunk, uint32_t i)
{
	uint32_t slot = chunk->record[i].link;
	const struct pm_segment *segment;

	if (pm_page_state(chunk, i) != PM_PENDING || slot == PM_LINK_ZERO)
		return false;
	segment = pm_pool_segment(&scanner->pool, slot);
	return segment && segment->open && segment->donor == chunk->mm->mm && !pm_slot_is_given(segment, slot);
}

/* Whether a page of the process still waits to be written to the segment. */
static bool is_wanted(const struct pm_scanner *scanner, const struct pm_mm *mm, const struct pm_segment *segment)
{
	if (segment->ngiven == segment->written)
		return false;
	for (size_t c = 0; c < mm->nchunks; c++) {
		const struct pm_chunk *chunk = mm->chunks[c];

		for (uint32_t i = 0; chunk->wanted && i < chunk->n; i++)
			if (pm_may_give(scanner, chunk, i) && chunk->record[i].link >> PM_SEGMENT_SHIFT == segment->id)
				return true;
	}
	return false;
}

/* Slots that the donor did not write, as far as it has said: they have no content, and nobody may be asked for them. */
static void give_up_unwritten(struct pm_scanner *scanner, const struct pm_segment *segment)
{
	uint32_t first = segment->id << PM_SEGMENT_SHIFT, n = 0;

	for (uint32_t at = 0; at < segment->windows * PM_WINDOW_PAGES; at++)
		if (pm_slot_users(&scanner->pool, first + at) && !pm_slot_is_confirmed(segment, first + at)) {
			pm_slot_unindex(scanner, first + at);
			n++;
		}
	for (struct pm_mm *mm = scanner->mms; mm && n; mm = mm->next)
		for (size_t c = 0; c < mm->nchunks; c++) {
			struct pm_chunk *chunk = mm->chunks[c];

			for (uint32_t i = 0; chunk->wanted && i < chunk->n; i++) {
				uint32_t slot = chunk->record[i].link;

				if (pm_page_state(chunk, i) == PM_PENDING && slot >> PM_SEGMENT_SHIFT == segment->id &&
				    !pm_slot_is_confirmed(segment, slot))
					pm_page_detach(scanner, chunk, i, PM_LOOKED);
			}
		}
}

void pm_give_close(struct pm_scanner *scanner, struct pm_mm *mm, bool all)
{
	bool more = scanner->in_pass || scanner->hashing; /* pages may still come */

	for (uint32_t id = 0; id < scanner->pool.nsegments && mm->unclosed; id++) {
		struct pm_segment *segment = scanner->pool.segments[id];

		if (!segment || !segment->open || segment->donor != mm->mm)
			continue;
		if (!all && (segment->giving || (more && segment->windows < PM_SEGMENT_PAGES / PM_WINDOW_PAGES) || (more && segment->ngiven != segment->written) ||
			     is_wanted(scanner, mm, segment)))
			continue;
		mm->unclosed--;
		give_up_unwritten(scanner, segment);
		if (pm_segment_close(&scanner->pool, segment)) /* the donor has it mapped for writing: nobody else will */
			pm_segment_retire(scanner, segment);
	}
}
