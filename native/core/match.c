/* SPDX-License-Identifier: MIT */
/*
 * Finding equal pages.
 *
 * The agents compare bytes, so that a wrong match costs time only.  Sums are of samples of the page: when an agent says that a page differs, it goes by a sum of the
 * whole of it from then on, and others with the sum are matched anew.
 */
#include "scanner.h"

#include "page.h"
#include "step_back.h"

enum {
	FILLED_MANY = 64, /* of a batch's pages */
	STREAK = 64,    /* matches in one order, after which it is taken for one */
	STREAK_GAP = 64, /* pages */
	TURN = 4096,     /* pages that one process may have written more than another */
	SAME_SUM = 16, /* others that are looked at when a sum has proved to be two contents' */
	DIFFERED_LEAST = 4, /* pages */
	DIFFERED_SHARE = 16, /* of which they are one or more */
};

static uint32_t salt(int node)
{
	return (uint32_t)node * 2654435761u; /* a content has another sum on another node; none on node 0 */
}

static uint32_t sampled_sum(uint64_t key, uint32_t salted)
{
	return ((uint32_t)key + salted) & ~PM_SUM_WHOLE;
}

static uint32_t whole_sum(uint64_t key, uint32_t salted)
{
	return (((uint32_t)(key >> 32) + salted) & ~PM_SUM_CHECK) | PM_SUM_WHOLE;
}

/* ---- matching ---- */

static void ask(struct pm_chunk *chunk, uint32_t i, uint32_t link)
{
	if (!chunk->mm->held_since)
		chunk->mm->held_since = pm_now_ns();
	pm_page_unleave(chunk, i);
	chunk->record[i].link = link;
	pm_chunk_wake(chunk);
	pm_set_state(chunk, i, PM_PENDING);
}

/* After a fork the same page is mapped at the same address by parent and child, until one of them writes. */
static bool same_page(const struct pm_chunk *a, uint32_t i, const struct pm_chunk *b, uint32_t k)
{
	uint64_t address = pm_chunk_address(a, i);

	bool exclusive = true;

	if (a->mm == b->mm || a->mm->family != b->mm->family || address != pm_chunk_address(b, k))
		return false;
	pm_track_exclusive(&a->mm->track, address, 1, &exclusive);
	if (!exclusive)
		pm_track_exclusive(&b->mm->track, address, 1, &exclusive);
	return !exclusive;
}

struct found {
	uint32_t slot;          /* with room, or PM_NO_SLOT */
	struct pm_chunk *chunk; /* of an unshared page with the same sum, or NULL */
	uint32_t i;
	bool same; /* one is there, but it is the very same page */
};

static struct found find(struct pm_scanner *scanner, const struct pm_chunk *chunk, uint32_t i, uint32_t sum)
{
	struct found found = {.slot = PM_NO_SLOT};

	for (uint32_t ref = pm_index_first(&scanner->index, sum); ref != PM_REF_NONE;
	     ref = pm_index_next(&scanner->index, ref, sum)) {
		struct pm_chunk *other;
		uint32_t k;

		if (ref & PM_REF_SLOT) {
			uint32_t slot = ref & ~PM_REF_SLOT, users = pm_slot_users(&scanner->pool, slot);

			if (!users || users >= scanner->knobs.max_page_sharing)
				continue;
			found.slot = slot;
			return found;
		}
		other = pm_chunk_of(&scanner->chunks, ref, &k);
		if (found.chunk || other->mm->deaf || (other == chunk && k == i))
			continue;
		if (same_page(chunk, i, other, k)) {
			found.same = true;
			continue;
		}
		found.chunk = other;
		found.i = k;
	}
	return found;
}

/*
 * A slot for the content of the page that is being looked at: at its own position in its chunk's window.  What is read in one go is then written to the pool
 * in one go, and a segment is complete as soon as the scan has left it behind, however scattered the twins are.
 */
static uint32_t slot_for(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, const struct pm_chunk *other, int node)
{
	int on = scanner->knobs.merge_across_nodes || scanner->nodes < 2 ? -1 : node;
	struct pm_segment *segment = chunk->window == PM_NO_SLOT ? NULL : pm_pool_segment(&scanner->pool, chunk->window);
	bool own = other != chunk && !(scanner->anew && !segment) && !(segment && segment->donor);
	uint32_t slot;

	if (own && (!segment || segment->state != PM_SEGMENT_LIVE)) {
		if (pm_pool_window(&scanner->pool, on, false, &chunk->window)) {
			scanner->counts.write_errors++;
			chunk->window = PM_NO_SLOT;
			return PM_NO_SLOT;
		}
		segment = pm_pool_segment(&scanner->pool, chunk->window);
	}
	/* Equal pages within one stretch can't both be in line with a window, which would then be half holes. */
	if (own) {
		slot = chunk->window + chunk->first + i;
		if (segment->node == on && !pm_slot_filled(&scanner->pool, slot))
			return slot;
	}
	/* The position was used for an earlier content of the page: slots are never used twice. */
	do {
		segment = scanner->spill[node] == PM_NO_SLOT ? NULL
							     : pm_pool_segment(&scanner->pool, scanner->spill[node]);
		if (!segment || segment->state != PM_SEGMENT_LIVE || segment->node != on ||
		    scanner->spill_used[node] == PM_WINDOW_PAGES) {
			if (pm_pool_window(&scanner->pool, on, true, &scanner->spill[node])) {
				scanner->counts.write_errors++;
				scanner->spill[node] = PM_NO_SLOT;
				return PM_NO_SLOT;
			}
			scanner->spill_used[node] = 0;
		}
		slot = scanner->spill[node] + scanner->spill_used[node]++;
	} while (pm_slot_filled(&scanner->pool, slot));
	return slot;
}

void pm_page_leave(struct pm_chunk *chunk, uint32_t i, uint32_t link)
{
	pm_page_unleave(chunk, i);
	if (link == PM_LINK_LEFT)
		chunk->mm->left_for_vmas++;
	chunk->record[i].link = link;
	if (chunk->state[i] % 32 < 4) /* from where the visits that are due become rare */
		chunk->state[i] = (uint8_t)((chunk->state[i] & ~31) | 4);
}

/*
 * Where both processes have the pages in one order, either can write them to the pool; the one that has written less does, so that both are at work.  In
 * another order it is the one that is being looked at, whose pages then lie in the pool as in its memory.
 */
static bool twin_gives(struct pm_scanner *scanner, const struct pm_chunk *chunk, uint32_t i, const struct pm_chunk *other, uint32_t k)
{
	uint32_t page = pm_page_number(chunk, i), twin = pm_page_number(other, k), n = scanner->streak.n;
	bool follows = page - scanner->streak.page == twin - scanner->streak.twin && page - scanner->streak.page <= STREAK_GAP;

	scanner->streak.page = page;
	scanner->streak.twin = twin;
	scanner->streak.n = follows ? n + 1 : 0;
	if (n < STREAK || other == chunk || other->mm == chunk->mm || !other->mm->gives || other->mm->deaf)
		return false;
	if (pm_gives_window(scanner, chunk) || pm_gives_window(scanner, other)) /* what was begun goes on */
		return !pm_gives_window(scanner, chunk);
	/* Not in turns: where the one leaves off and the other begins, both have a window that is half used. */
	if (scanner->streak.by_twin ? other->mm->given > chunk->mm->given + TURN : other->mm->given + TURN < chunk->mm->given)
		scanner->streak.by_twin = !scanner->streak.by_twin;
	return scanner->streak.by_twin;
}

/*
 * `page`: NULL where its content is not here, and the process will write it to the pool.  `sampled`: by this sum, too, it may be that of a slot from when samples were
 * gone by; else the same as `sum`.
 */
static void match(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, uint32_t sum, uint32_t sampled, const char *page,
		  bool zero, int node)
{
	struct found found;
	uint32_t slot;

	if (scanner->knobs.use_zero_pages && !chunk->mm->deaf && zero) {
		scanner->zeros = true;
		ask(chunk, i, PM_LINK_ZERO);
		return;
	}
	found = find(scanner, chunk, i, sum);
	if (found.slot == PM_NO_SLOT && sampled != sum) {
		found.slot = find(scanner, chunk, i, sampled).slot;
		if (found.slot != PM_NO_SLOT)
			chunk->record[i].sum = sampled;
	}
	if (chunk->mm->deaf) {
		found.slot = PM_NO_SLOT;
		found.chunk = NULL;
	}
	if (found.slot != PM_NO_SLOT && !pm_slot_get(&scanner->pool, found.slot)) {
		ask(chunk, i, found.slot);
		return;
	}
	if (!found.chunk)
		slot = PM_NO_SLOT;
	else if (!page && twin_gives(scanner, chunk, i, found.chunk, found.i))
		slot = pm_give_slot(scanner, found.chunk, found.i, chunk);
	else if (!page)
		slot = pm_give_slot(scanner, chunk, i, found.chunk);
	else if (chunk->window == PM_NO_SLOT && (scanner->anew || found.chunk->window != PM_NO_SLOT)) /* a window more would be mostly holes */
		slot = slot_for(scanner, found.chunk, found.i, chunk, node);
	else
		slot = slot_for(scanner, chunk, i, found.chunk, node);
	if (slot != PM_NO_SLOT) {
		pm_index_remove(&scanner->index, pm_page_number(found.chunk, found.i), sum);
		if (page) {
			pm_pool_fill(&scanner->pool, &scanner->run, slot, sum, page);
			scanner->filled++;
		} else {
			pm_pool_reserve(&scanner->pool, slot, sum);
		}
		pm_slot_get(&scanner->pool, slot);
		pm_slot_get(&scanner->pool, slot);
		pm_slot_index(scanner, slot);
		ask(found.chunk, found.i, slot);
		ask(chunk, i, slot);
		return;
	}
	if (found.chunk) /* the pool can't be made larger just now: as if it had not been looked at */
		return;
	if (found.same) {
		pm_page_leave(chunk, i, PM_LINK_KNOWN);
		return;
	}
	pm_page_unleave(chunk, i);
	pm_set_state(chunk, i, PM_UNSHARED);
	pm_index_insert(&scanner->index, pm_page_number(chunk, i), sum);
}

bool pm_match_known(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i)
{
	struct found found;

	if (chunk->mm->deaf)
		return true;
	found = find(scanner, chunk, i, chunk->record[i].sum);
	if (found.slot == PM_NO_SLOT || pm_slot_get(&scanner->pool, found.slot))
		return false;
	ask(chunk, i, found.slot);
	chunk->touched = scanner->slice;
	return true;
}

/*
 * Whether a page's key makes it a candidate, and with which sum: that of the samples, or that of the whole page where the first turned out to be another content's,
 * too.  Without tracking, a sum of the whole page tells whether it has changed between two looks.
 */
static bool proven(struct pm_scanner *scanner, const struct pm_candidate *c, uint64_t key, uint32_t salted, uint32_t *sum)
{
	struct pm_chunk *chunk = c->chunk;
	uint32_t before = chunk->record[c->i].sum, link = chunk->record[c->i].link;
	uint32_t sampled = sampled_sum(key, salted), whole = whole_sum(key, salted), check = whole | PM_SUM_CHECK;
	bool known = key >> 32, differs = link == PM_LINK_DIFFERS; /* known: the whole page was looked at */
	bool proved = before == whole || (differs && before == sampled);
	unsigned int state = pm_page_state(chunk, c->i);

	if (state == PM_UNSHARED) { /* without tracking: is it still what the index says? */
		if (before != sampled && before != whole) {
			pm_page_detach(scanner, chunk, c->i, PM_LOOKED);
			chunk->record[c->i].sum = check;
		}
		return false;
	}
	if (state != PM_LOOKED)
		return false;
	if (!known && (scanner->whole || pm_sum_is_whole(before) || proved)) /* asked for before that was so */
		return false;
	if (differs && before == whole) { /* neither sum helps; until it is written */
		pm_set_state(chunk, c->i, PM_UNSHARED);
		chunk->record[c->i].link = PM_LINK_ALONE;
		return false;
	}
	*sum = proved || scanner->whole ? whole : sampled;
	/* A candidate that it was before it stays; should it have changed where the samples do not show it, the comparison will. */
	if (c->decided || proved || before == check ||
	    (before == sampled && (scanner->anew || link == PM_LINK_KNOWN || link == PM_LINK_LEFT))) {
		chunk->record[c->i].sum = *sum;
		return true;
	}
	chunk->record[c->i].sum = check;
	pm_page_unleave(chunk, c->i);
	chunk->record[c->i].link = PM_REF_NONE;
	return false;
}

/* Found by its samples and not compared yet, nor on the way to be. */
static bool is_unproved(struct pm_scanner *scanner, const struct pm_chunk *chunk, uint32_t i)
{
	uint32_t link = chunk->record[i].link;
	const struct pm_segment *segment;

	if (pm_sum_is_whole(chunk->record[i].sum))
		return false;
	switch (pm_page_state(chunk, i)) {
	case PM_UNSHARED:
		return link != PM_LINK_ALONE;
	case PM_PENDING:
		segment = link == PM_LINK_ZERO ? NULL : pm_pool_segment(&scanner->pool, link);
		return segment && segment->open && !pm_slot_is_given(segment, link);
	default:
		return false;
	}
}

static void take_whole(struct pm_scanner *scanner)
{
	scanner->whole = true;
	for (struct pm_mm *mm = scanner->mms; mm; mm = mm->next)
		for (size_t c = 0; c < mm->nchunks; c++) {
			struct pm_chunk *chunk = mm->chunks[c];

			for (uint32_t i = 0; i < chunk->n; i++) {
				if (!is_unproved(scanner, chunk, i))
					continue;
				pm_page_detach(scanner, chunk, i, PM_LOOKED);
				chunk->record[i].link = PM_LINK_DIFFERS;
			}
		}
}

/*
 * Where many pages are equal but for a word, most of what samples match would be written to the pool and mapped for nothing.  So a part of the pages, chosen by what their samples
 * are, is hashed whole, too (pm_page_keys), and this tells how much the samples are worth here.  However many pages there are: the more, the smaller the part.  True: it has just turned out
 * that they are worth too little.
 */
static bool judge(struct pm_scanner *scanner, uint32_t page, uint64_t key)
{
	uint32_t sampled = (uint32_t)key, whole = (uint32_t)(key >> 32), at = sampled >> 22;

	if (scanner->whole || !whole || !pm_key_is_proof(key) || sampled >> PM_PROOF_BITS & scanner->proofs.mask)
		return false;
	if (scanner->proofs.of[at].whole && scanner->proofs.of[at].sampled == sampled && scanner->proofs.of[at].page != page) {
		scanner->proofs.judged++;
		scanner->proofs.differed += scanner->proofs.of[at].whole != whole;
		if (scanner->proofs.differed >= DIFFERED_LEAST && scanner->proofs.differed * DIFFERED_SHARE >= scanner->proofs.judged)
			take_whole(scanner);
		return scanner->whole;
	}
	if (scanner->proofs.of[at].whole && scanner->proofs.of[at].sampled != sampled && ++scanner->proofs.evicted == PM_PROOFS) {
		scanner->proofs.mask = scanner->proofs.mask << 1 | 1;
		scanner->proofs.evicted = 0;
	}
	scanner->proofs.of[at].page = page;
	scanner->proofs.of[at].sampled = sampled;
	scanner->proofs.of[at].whole = whole;
	return false;
}

static void prefetch_chains(const struct pm_scanner *scanner, const struct pm_batch *batch, size_t from)
{
	uint32_t sums[PM_PREFETCHED], n = 0;

	for (size_t i = from; i < batch->n && n < PM_PREFETCHED; i++)
		sums[n++] = sampled_sum(batch->keys[i], salt(batch->nodes[i]));
	pm_index_prefetch_chains(&scanner->index, sums, n);
}

/* `content`: of the batch's pages, or NULL. */
static void match_all(struct pm_scanner *scanner, struct pm_batch *batch, const char *content)
{
	static const char zeros[PM_PAGE_SIZE];
	const struct pm_candidate *c = batch->candidates;
	uint64_t zero_key = content ? 0 : pm_page_key(zeros, true); /* without `whole`, too: samples of zeros tell nothing */
	uint32_t sum;

	scanner->counts.bytes_read += batch->bytes_read;
	scanner->counts.bytes_hashed += (uint64_t)batch->hashed * PM_PAGE_SIZE;
	scanner->counts.read_errors += batch->read_errors;
	for (size_t i = 0; i < batch->n; i++)
		if (c[i].chunk)
			pm_index_prefetch(&scanner->index, sampled_sum(batch->keys[i], salt(batch->nodes[i])));
	for (size_t i = 0; i < batch->n; i++) {
		if (i % PM_PREFETCHED == 0)
			prefetch_chains(scanner, batch, i);
		if (c[i].chunk && proven(scanner, &c[i], batch->keys[i], salt(batch->nodes[i]), &sum)) {
			const char *page = content ? content + i * PM_PAGE_SIZE : NULL;
			struct pm_chunk *chunk = c[i].chunk;
			bool fresh = pm_sum_is_whole(sum) && scanner->whole && chunk->record[c[i].i].link != PM_LINK_DIFFERS;
			bool zero = page ? scanner->knobs.use_zero_pages && pm_page_is_zero(page) : batch->keys[i] == zero_key;

			if (!zero && judge(scanner, pm_page_number(chunk, c[i].i), batch->keys[i])) {
				chunk->record[c[i].i].link = PM_LINK_DIFFERS; /* this one, too */
				continue;
			}
			chunk->touched = scanner->slice;
			match(scanner, chunk, c[i].i, sum, fresh ? sampled_sum(batch->keys[i], salt(batch->nodes[i])) : sum, page, zero, batch->nodes[i]);
		}
	}
	batch->n = 0;
	pm_give_way();
}

void pm_match_hashed(struct pm_scanner *scanner, struct pm_batch *batch)
{
	match_all(scanner, batch, NULL);
}

static void match_batch(struct pm_scanner *scanner, struct pm_batch *batch)
{
	pm_reader_wait(&scanner->reader, batch);
	scanner->filled = 0;
	match_all(scanner, batch, batch->buffer);
	if (pm_pool_flush(&scanner->pool, &scanner->run))
		scanner->counts.write_errors++;
}

static void read_begin(struct pm_scanner *scanner, struct pm_batch *batch)
{
	batch->mm = batch->candidates[0].chunk->mm;
	batch->nodes_max = scanner->knobs.merge_across_nodes || scanner->nodes < 2 ? 0 : PM_NODES_MAX;
	/* Waking a thread costs as much as matching pages that have no twins: it is for batches whose matching fills the pool. */
	pm_reader_begin(&scanner->reader, batch, batch->n == PM_READ_PAGES && scanner->filled >= FILLED_MANY);
}

void pm_candidate_add(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, bool decided)
{
	struct pm_batch *batch = &scanner->batches[scanner->filling];

	batch->candidates[batch->n++] = (struct pm_candidate){
		.chunk = chunk, .i = i, .decided = decided, .address = pm_chunk_address(chunk, i)};
	if (batch->n < PM_READ_PAGES)
		return;
	if (pm_hash_want(scanner, batch)) {
		batch->n = 0;
		return;
	}
	/* While the next is read, what was read before is matched. */
	read_begin(scanner, batch);
	scanner->filling ^= 1;
	if (scanner->batches[scanner->filling].n)
		match_batch(scanner, &scanner->batches[scanner->filling]);
}

void pm_candidates_match(struct pm_scanner *scanner)
{
	struct pm_batch *last = &scanner->batches[scanner->filling], *before = &scanner->batches[scanner->filling ^ 1];

	if (last->n)
		read_begin(scanner, last);
	if (before->n)
		match_batch(scanner, before);
	if (last->n)
		match_batch(scanner, last);
}

/* The pages of the index that have a sum, as LOOKED again. */
static size_t take_unshared(struct pm_scanner *scanner, uint32_t sum, uint32_t *pages, size_t cap)
{
	size_t n = 0;

	for (uint32_t ref = pm_index_first(&scanner->index, sum); ref != PM_REF_NONE && n < cap;
	     ref = pm_index_next(&scanner->index, ref, sum))
		if (!(ref & PM_REF_SLOT))
			pages[n++] = ref;
	for (size_t k = 0; k < n; k++) {
		uint32_t i;
		struct pm_chunk *chunk = pm_chunk_of(&scanner->chunks, pages[k], &i);

		pm_page_detach(scanner, chunk, i, PM_LOOKED);
	}
	return n;
}

void pm_match_anew(struct pm_scanner *scanner, uint32_t page)
{
	uint32_t pages[SAME_SUM + 1], i;
	struct pm_chunk *chunk = pm_chunk_of(&scanner->chunks, page, &i);
	size_t n = 1 + take_unshared(scanner, chunk->record[i].sum, pages + 1, SAME_SUM);

	pages[0] = page;
	for (size_t k = 0; k < n; k++) {
		chunk = pm_chunk_of(&scanner->chunks, pages[k], &i);
		if (pm_page_state(chunk, i) != PM_LOOKED)
			continue;
		scanner->anew = true;
		pm_candidate_add(scanner, chunk, i, false);
		pm_candidates_match(scanner); /* one at a time: they may be of different processes */
	}
	scanner->anew = false;
}
