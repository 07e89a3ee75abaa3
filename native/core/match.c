/* SPDX-License-Identifier: MIT */
/*
 * Reading pages, and finding equal ones.
 *
 * The agents compare bytes, so that a wrong match costs time only.  Sums have 32 bits, of which some in every million agree by chance: when an agent says
 * that a page differs, it and all others with the sum are matched anew.
 */
#include "scanner.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SAME_SUM = 16 }; /* others that are looked at when a sum has proved to be two contents' */

void pm_candidate_add(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, bool decided)
{
	if (scanner->ncandidates == PM_READ_PAGES)
		pm_candidates_match(scanner);
	scanner->candidates[scanner->ncandidates++] = (struct pm_candidate){.chunk = chunk, .i = i, .decided = decided};
}

/* ---- reading ---- */

/* Read candidates [from, to), adjacent pages, into their places in the buffer.  Bytes read, or -errno. */
static ssize_t read_adjacent(struct pm_scanner *scanner, struct pm_mm *mm, size_t from, size_t to)
{
	uint64_t address = pm_chunk_address(scanner->candidates[from].chunk, scanner->candidates[from].i);
	ssize_t n = pread(mm->mem_fd, scanner->buffer + from * PM_PAGE_SIZE, (to - from) * PM_PAGE_SIZE, (off_t)address);

	return n < 0 ? -errno : n;
}

static size_t adjacent(const struct pm_scanner *scanner, size_t from)
{
	const struct pm_candidate *c = scanner->candidates;
	size_t to = from + 1;

	while (to < scanner->ncandidates && c[to].exclusive == c[from].exclusive &&
	       pm_chunk_address(c[to].chunk, c[to].i) == pm_chunk_address(c[to - 1].chunk, c[to - 1].i) + PM_PAGE_SIZE)
		to++;
	return to;
}

/* Read candidates from `from` on.  Bytes read (whole pages and perhaps a part of one), or -errno. */
static ssize_t read_some(struct pm_scanner *scanner, struct pm_mm *mm, size_t from)
{
	struct iovec local = {scanner->buffer + from * PM_PAGE_SIZE, (scanner->ncandidates - from) * PM_PAGE_SIZE};
	struct iovec remote[PM_READ_PAGES];
	unsigned long n = 0;
	ssize_t got;

	if (mm->mem_fd >= 0 && (mm->by_mem || !scanner->candidates[from].exclusive))
		return read_adjacent(scanner, mm, from, adjacent(scanner, from));
	for (size_t at = from; at < scanner->ncandidates && scanner->candidates[at].exclusive;) {
		size_t to = adjacent(scanner, at);
		const struct pm_candidate *c = &scanner->candidates[at];

		remote[n++] = (struct iovec){(void *)(uintptr_t)pm_chunk_address(c->chunk, c->i),
					     (to - at) * PM_PAGE_SIZE};
		at = to;
	}
	got = process_vm_readv(mm->pid, &local, 1, remote, n, 0);
	if (got >= 0)
		return got;
	if ((errno == EPERM || errno == ENOSYS) && mm->mem_fd >= 0) {
		mm->by_mem = true;
		return read_some(scanner, mm, from);
	}
	return -errno;
}

/*
 * Which candidates are mapped by this process alone.  process_vm_readv pins what it reads, and to pin a page that is
 * shared after a fork the kernel copies it: reading would cost the memory that is to be saved.  /proc/PID/mem does not.
 */
static void find_exclusive(struct pm_scanner *scanner, struct pm_mm *mm)
{
	struct pm_candidate *c = scanner->candidates;

	for (size_t i = 0; i < scanner->ncandidates; i++)
		c[i].exclusive = true;
	for (size_t at = 0, to; mm->mem_fd >= 0 && at < scanner->ncandidates; at = to) {
		bool exclusive[PM_READ_PAGES];

		to = adjacent(scanner, at);
		pm_track_exclusive(&mm->track, pm_chunk_address(c[at].chunk, c[at].i), to - at, exclusive);
		for (size_t i = at; i < to; i++)
			c[i].exclusive = exclusive[i - at];
	}
}

/* Read all candidates; those that can't be read get a NULL chunk. */
static void read_candidates(struct pm_scanner *scanner, struct pm_mm *mm)
{
	find_exclusive(scanner, mm);
	for (size_t at = 0; at < scanner->ncandidates;) {
		ssize_t got = read_some(scanner, mm, at);

		if (got == -EINTR)
			continue;
		if (got == -ESRCH) {
			while (at < scanner->ncandidates)
				scanner->candidates[at++].chunk = NULL;
			break;
		}
		if (got > 0) {
			size_t before = at;

			at += (size_t)got / PM_PAGE_SIZE;
			scanner->counts.bytes_read += (uint64_t)got;
			if (at > before) /* what is left is tried by itself: it may be of the other kind */
				continue;
		}
		if (at < scanner->ncandidates) { /* the page that stopped it: unmapped meanwhile, or not readable */
			scanner->candidates[at++].chunk = NULL;
			scanner->counts.read_errors++;
		}
	}
}

/* ---- NUMA ---- */

/* The node of every candidate's page when nodes are to be kept apart; 0 otherwise. */
static void find_nodes(struct pm_scanner *scanner, const struct pm_mm *mm, int *nodes)
{
	void *pages[PM_READ_PAGES];

	for (size_t i = 0; i < scanner->ncandidates; i++) {
		const struct pm_candidate *c = &scanner->candidates[i];

		nodes[i] = 0;
		pages[i] = c->chunk ? (void *)(uintptr_t)pm_chunk_address(c->chunk, c->i) : NULL;
	}
	if (scanner->knobs.merge_across_nodes || scanner->nodes < 2)
		return;
	if (syscall(SYS_move_pages, mm->pid, scanner->ncandidates, pages, NULL, nodes, 0) < 0)
		return;
	for (size_t i = 0; i < scanner->ncandidates; i++)
		if (nodes[i] < 0 || nodes[i] >= PM_NODES_MAX)
			nodes[i] = 0;
}

static uint32_t salt(int node)
{
	return (uint32_t)node * 2654435761u; /* a content has another sum on another node; none on node 0 */
}

/* ---- matching ---- */

static void ask(struct pm_chunk *chunk, uint32_t i, uint32_t link)
{
	if (!chunk->mm->held_since)
		chunk->mm->held_since = pm_now_ns();
	pm_page_unleave(chunk, i);
	chunk->link[i] = link;
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
	uint32_t slot;

	if (other != chunk && (!segment || segment->state != PM_SEGMENT_LIVE)) {
		if (pm_pool_window(&scanner->pool, on, false, &chunk->window)) {
			chunk->window = PM_NO_SLOT;
			return PM_NO_SLOT;
		}
		segment = pm_pool_segment(&scanner->pool, chunk->window);
	}
	/* Equal pages within one stretch can't both be in line with a window, which would then be half holes. */
	if (other != chunk) {
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
	chunk->link[i] = link;
	if (chunk->state[i] % 32 < 4) /* from where the visits that are due become rare */
		chunk->state[i] = (uint8_t)((chunk->state[i] & ~31) | 4);
}

static void match(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, uint32_t sum, const char *page,
		  int node)
{
	struct found found;
	uint32_t slot;

	if (scanner->knobs.use_zero_pages && !chunk->mm->deaf && pm_page_is_zero(page)) {
		ask(chunk, i, PM_LINK_ZERO);
		return;
	}
	found = find(scanner, chunk, i, sum);
	if (chunk->mm->deaf) {
		found.slot = PM_NO_SLOT;
		found.chunk = NULL;
	}
	if (found.slot != PM_NO_SLOT && !pm_slot_get(&scanner->pool, found.slot)) {
		ask(chunk, i, found.slot);
		return;
	}
	slot = found.chunk ? slot_for(scanner, chunk, i, found.chunk, node) : PM_NO_SLOT;
	if (slot != PM_NO_SLOT) {
		pm_index_remove(&scanner->index, pm_page_number(found.chunk, found.i), sum);
		pm_pool_fill(&scanner->pool, &scanner->run, slot, sum, page);
		pm_slot_get(&scanner->pool, slot);
		pm_slot_get(&scanner->pool, slot);
		pm_slot_index(scanner, slot);
		ask(found.chunk, found.i, slot);
		ask(chunk, i, slot);
		return;
	}
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
	found = find(scanner, chunk, i, chunk->sum[i]);
	if (found.slot == PM_NO_SLOT || pm_slot_get(&scanner->pool, found.slot))
		return false;
	ask(chunk, i, found.slot);
	chunk->touched = scanner->slice;
	return true;
}

/*
 * Whether what was read makes the page a candidate, and with which sum: that of the hash's low half, or of its high half
 * where the low one turned out to be another content's too (one page in some 10^4 of a 100 GiB).
 */
static bool proven(struct pm_scanner *scanner, const struct pm_candidate *c, uint64_t hash, uint32_t salted, uint32_t *sum)
{
	struct pm_chunk *chunk = c->chunk;
	uint32_t before = chunk->sum[c->i], low = (uint32_t)hash + salted, high = (uint32_t)(hash >> 32) + salted;
	unsigned int state = pm_page_state(chunk, c->i);

	if (state == PM_UNSHARED) { /* without tracking: is it still what the index says? */
		if (before != low && before != high) {
			pm_page_detach(scanner, chunk, c->i, PM_LOOKED);
			chunk->sum[c->i] = low;
		}
		return false;
	}
	if (state != PM_LOOKED)
		return false;
	if (chunk->link[c->i] == PM_LINK_DIFFERS && before == high) { /* neither sum helps; until it is written */
		pm_set_state(chunk, c->i, PM_UNSHARED);
		chunk->link[c->i] = PM_LINK_ALONE;
		return false;
	}
	*sum = before == high || (chunk->link[c->i] == PM_LINK_DIFFERS && before == low) ? high : low;
	chunk->sum[c->i] = *sum;
	if (c->decided || before == low || before == high)
		return true;
	pm_page_unleave(chunk, c->i);
	chunk->link[c->i] = PM_REF_NONE;
	return false;
}

void pm_candidates_match(struct pm_scanner *scanner)
{
	struct pm_candidate *c = scanner->candidates;
	int nodes[PM_READ_PAGES];
	size_t n = scanner->ncandidates;
	uint32_t sum;

	if (!n)
		return;
	read_candidates(scanner, c[0].chunk->mm);
	for (size_t i = 0; i < n; i++)
		if (c[i].chunk) {
			find_nodes(scanner, c[i].chunk->mm, nodes);
			break;
		}
	for (size_t i = 0; i < n; i++) {
		if (!c[i].chunk)
			continue;
		scanner->hashes[i] = pm_page_hash(scanner->buffer + i * PM_PAGE_SIZE);
		scanner->counts.bytes_hashed += PM_PAGE_SIZE;
		pm_index_prefetch(&scanner->index, (uint32_t)scanner->hashes[i] + salt(nodes[i]));
	}
	for (size_t i = 0; i < n; i++)
		if (c[i].chunk)
			pm_index_prefetch_entry(&scanner->index, (uint32_t)scanner->hashes[i] + salt(nodes[i]));
	for (size_t i = 0; i < n; i++)
		if (c[i].chunk && proven(scanner, &c[i], scanner->hashes[i], salt(nodes[i]), &sum)) {
			c[i].chunk->touched = scanner->slice;
			match(scanner, c[i].chunk, c[i].i, sum, scanner->buffer + i * PM_PAGE_SIZE, nodes[i]);
		}
	scanner->ncandidates = 0;
	if (pm_pool_flush(&scanner->pool, &scanner->run))
		scanner->counts.write_errors++;
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
	size_t n = 1 + take_unshared(scanner, chunk->sum[i], pages + 1, SAME_SUM);

	pages[0] = page;
	for (size_t k = 0; k < n; k++) {
		chunk = pm_chunk_of(&scanner->chunks, pages[k], &i);
		if (pm_page_state(chunk, i) != PM_LOOKED)
			continue;
		pm_candidate_add(scanner, chunk, i, false);
		pm_candidates_match(scanner); /* one at a time: they may be of different processes */
	}
}
