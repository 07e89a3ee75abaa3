/* SPDX-License-Identifier: MIT */
/*
 * What is asked of agents, and their answers.
 *
 * There is no queue: the pages' own states say what is wanted.  A request is a copy of its runs, kept until its answer.
 */
#include "scanner.h"
#include "step_back.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	RUNS_MAX = (PM_MESSAGE_MAX - sizeof(struct pm_header)) / sizeof(struct pm_run),
	RANGES_MAX = (PM_MESSAGE_MAX - sizeof(struct pm_header)) / sizeof(struct pm_range),
	SEGMENTS_MAX = PM_FDS_MAX - 1, /* one descriptor is the write tracker's */
	SEGMENTS_FEW = PM_FDS_FEW - 1,
	SMALL_PIECE = 64,  /* pages */
	SAME_PIECE = 16,   /* a step of fewer slots is a gap, not another piece */
	GAP_SCARCE = 64,   /* longest gap when mappings are scarce */
};
_Static_assert(sizeof(struct pm_run) == sizeof(struct pm_range), "one limit serves both");
static const uint64_t HOLD_NS = 5000000000; /* longest wait for more pages of the same stretch */

uint64_t pm_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct build {
	struct pm_scanner *scanner;
	struct pm_mm *mm;
	struct pm_run *runs; /* the datagram's own */
	uint32_t n;
	uint64_t pages;
	uint32_t segments[SEGMENTS_MAX];
	uint32_t nsegments;
	bool hold;  /* scanning goes on: more pages may come */
	bool give;  /* pages that are to be written to an open segment, else those that are in one that is closed */
	bool full;
	bool left; /* pages that could have been asked for, but for the request's limits */
	uint64_t end; /* of the last group */
};

static uint32_t segment_index(struct build *build, uint32_t slot)
{
	uint32_t id = slot >> PM_SEGMENT_SHIFT, i;

	for (i = 0; i < build->nsegments; i++)
		if (build->segments[i] == id)
			return i;
	if (i >= (build->mm->gives ? SEGMENTS_MAX : SEGMENTS_FEW))
		return SEGMENTS_MAX;
	build->segments[build->nsegments++] = id;
	return i;
}

/* Pages that may be mapped as private copies so that the runs on both sides need one mapping. */
static bool may_be_gap(const struct pm_chunk *chunk, uint32_t i)
{
	unsigned int state = pm_page_state(chunk, i);

	if (chunk->mm->foreign) { /* it may be mapped from a pool that is not ours */
		const struct pm_part *part = pm_mm_part(chunk->mm, pm_chunk_address(chunk, i));

		if (part && part->slot == PM_NO_SLOT)
			return false;
	}
	return state == PM_LOOKED || state == PM_UNSHARED;
}

/*
 * Whether a pending page can't be asked for yet.  While scanning goes on a segment is filled by pwrite, which is faster, until it is handed out; one that a process
 * fills is handed out to nobody else until it is closed.
 */
static bool must_wait(const struct build *build, const struct pm_chunk *chunk, uint32_t i)
{
	const struct pm_segment *segment = pm_pool_segment(&build->scanner->pool, chunk->record[i].link);

	if (build->give)
		return !pm_may_give(build->scanner, chunk, i);
	if (!segment || segment->donor)
		return !segment || segment->open;
	return build->hold && !segment->sealed && segment->windows < PM_SEGMENT_PAGES / PM_WINDOW_PAGES;
}

/* Whether a page goes to a slot in the same request. */
static bool follows(const struct build *build, const struct pm_chunk *chunk, uint32_t at, uint32_t slot)
{
	return pm_page_state(chunk, at) == PM_PENDING && chunk->record[at].link == slot && (!build->give || pm_may_give(build->scanner, chunk, at));
}

/*
 * The group that begins at page `i`, which is pending: runs of one alignment, with gaps between them.  Returns the number
 * of runs put at `runs`, and the page after the group in *after.
 */
static uint32_t group(const struct build *build, const struct pm_chunk *chunk, uint32_t i, struct pm_run *runs,
		      uint32_t *after, uint32_t gap_max)
{
	uint32_t slot = chunk->record[i].link, n = 0, at = i, end = i, room = PM_SEGMENT_PAGES - pm_slot_position(slot);
	uint32_t stop = i + room < chunk->n ? i + room : chunk->n;

	for (;;) {
		uint32_t from = at, gap;

		while (at < stop && follows(build, chunk, at, slot + (at - i)))
			at++;
		runs[n++] = (struct pm_run){.addr = pm_chunk_address(chunk, from),
					    .npages = at - from,
					    .pgoff = pm_slot_position(slot + (from - i)),
					    .flags = from == i ? 0 : PM_RUN_JOINED};
		end = at;
		for (gap = 0; at < stop && gap < gap_max && may_be_gap(chunk, at); gap++)
			at++;
		if (at == stop || !follows(build, chunk, at, slot + (at - i)) || at == end)
			break;
		runs[n++] = (struct pm_run){.addr = pm_chunk_address(chunk, end),
					    .npages = gap,
					    .pgoff = pm_slot_position(slot + (end - i)),
					    .flags = PM_RUN_GAP | PM_RUN_JOINED};
	}
	*after = end;
	return n;
}

static void leave_for_vmas(struct build *build, struct pm_chunk *chunk, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		if (pm_page_state(chunk, i) != PM_PENDING)
			continue;
		pm_page_detach(build->scanner, chunk, i, PM_LOOKED);
		pm_page_leave(chunk, i, PM_LINK_LEFT);
	}
}

/* How many mappings more the process may get. */
static uint64_t vmas_free(const struct build *build)
{
	uint64_t limit = build->scanner->max_map_count, used = build->mm->vmas + build->scanner->knobs.vma_reserve;

	return used < limit ? limit - used : 0;
}

static void mark_asked(struct build *build, struct pm_chunk *chunk, const struct pm_run *runs, uint32_t n)
{
	for (uint32_t k = 0; k < n; k++) {
		uint32_t i = (uint32_t)((runs[k].addr - chunk->base) >> PM_PAGE_SHIFT) - chunk->first;

		for (uint32_t end = i + runs[k].npages; !(runs[k].flags & PM_RUN_GAP) && i < end; i++) {
			if (build->give)
				pm_slot_give(pm_pool_segment(&build->scanner->pool, chunk->record[i].link), chunk->record[i].link);
			pm_set_state(chunk, i, PM_ASKED);
		}
	}
}

static void build_merges(struct build *build, struct pm_chunk *chunk)
{
	struct pm_scanner *scanner = build->scanner;
	struct pm_run runs[2 * PM_CHUNK_PAGES];
	uint32_t after;

	for (uint32_t i = 0; i < chunk->n && !build->full; i = after) {
		uint32_t n, segment, segments = build->nsegments, pages = 0, gap_max = scanner->knobs.gap_pages;
		uint64_t cost;

		after = i + 1;
		if (pm_page_state(chunk, i) != PM_PENDING || chunk->record[i].link == PM_LINK_ZERO ||
		    must_wait(build, chunk, i))
			continue;
		if (vmas_free(build) < scanner->max_map_count / 4 && gap_max && gap_max < GAP_SCARCE)
			gap_max = GAP_SCARCE;
		n = group(build, chunk, i, runs, &after, gap_max);
		/* A mapping in the middle of another makes two more; next to the one before, one. */
		cost = build->n && build->end == runs[0].addr ? 1 : 2;
		if (vmas_free(build) < cost) {
			leave_for_vmas(build, chunk, i, after);
			continue;
		}
		segment = segment_index(build, chunk->record[i].link);
		if (build->give && segment) { /* one segment a request: its end is told by that of its requests */
			build->nsegments = segments;
			build->left = true;
			continue;
		}
		if (segment == SEGMENTS_MAX) { /* a datagram carries only so many descriptors: it is for the next one */
			build->left = true;
			continue;
		}
		if (build->n + n > RUNS_MAX || build->pages >= PM_ASK_PAGES) {
			build->nsegments = segments; /* every descriptor that is sent is named by a run */
			build->full = true;
			break;
		}
		for (uint32_t k = 0; k < n; k++) {
			runs[k].segment = segment;
			pages += runs[k].npages;
			build->runs[build->n++] = runs[k];
		}
		mark_asked(build, chunk, runs, n);
		build->end = pm_chunk_address(chunk, after);
		build->pages += pages;
		build->mm->vmas += cost;
	}
}

/* Pages to be dropped as zero, or to be unmerged, as ranges. */
static void build_ranges(struct build *build, struct pm_chunk *chunk, enum pm_message_type type)
{
	struct pm_range *ranges = (struct pm_range *)(void *)build->runs;

	for (uint32_t i = 0; i < chunk->n; i++) {
		uint64_t address = pm_chunk_address(chunk, i);
		unsigned int state = pm_page_state(chunk, i);

		if (type == PM_ZERO ? state != PM_PENDING || chunk->record[i].link != PM_LINK_ZERO
					    : state != PM_RECALLED)
			continue;
		if (build->n && ranges[build->n - 1].end == address && build->pages < PM_ASK_PAGES) {
			ranges[build->n - 1].end += PM_PAGE_SIZE;
		} else if (build->n == RANGES_MAX || build->pages >= PM_ASK_PAGES) {
			build->full = true;
			return;
		} else {
			ranges[build->n++] = (struct pm_range){.start = address, .end = address + PM_PAGE_SIZE};
		}
		build->pages++;
		pm_set_state(chunk, i, PM_ASKED);
	}
}

/* What is wanted of a chunk is in small pieces: its twins lie elsewhere in another order, and more of them will be found in time. */
static bool is_scattered(const struct pm_chunk *chunk)
{
	uint32_t pages = 0, pieces = 0, next = PM_NO_SLOT;

	for (uint32_t i = 0; i < chunk->n; i++) {
		if (pm_page_state(chunk, i) != PM_PENDING)
			continue;
		pages++;
		pieces += next == PM_NO_SLOT || chunk->record[i].link - next >= SAME_PIECE;
		next = chunk->record[i].link + 1;
	}
	return pieces * SMALL_PIECE > pages;
}

/*
 * While scanning goes on, the chunk that it is in is left alone, and those in which pages become wanted here and there: the more are asked for at once, the fewer mappings, stops and
 * looks at page tables they take.
 */
static bool is_held(const struct build *build, const struct pm_chunk *chunk)
{
	return build->hold && is_scattered(chunk);
}

static bool is_under_way(const struct build *build, const struct pm_chunk *chunk)
{
	return build->hold && chunk->touched == build->scanner->slice && build->mm->cursor < chunk->base + PM_CHUNK_BYTES;
}

/* pm_chunk.waits: until scanning is over, or twice as many pages are wanted (<< 2) as when that was found. */
enum { HELD = 2, WAITS_KIND = 3 };

/* What decides, besides the pages, which of them must wait. */
static uint32_t pool_state(const struct build *build)
{
	return build->scanner->pool.changes << 2 | (uint32_t)build->hold << 1 | 1;
}

/* Nothing can have come of another look at the chunk: without this each request would go through all pages that wait. */
static bool is_waiting(const struct build *build, const struct pm_chunk *chunk, enum pm_message_type type)
{
	if (type != PM_MERGE && type != PM_GIVE)
		return false;
	if (type == PM_GIVE && chunk->takes)
		return true;
	return (chunk->waits & WAITS_KIND) == HELD ? build->hold && chunk->wanted < 2 * (chunk->waits >> 2) : chunk->waits == pool_state(build);
}

/* More pages of it are wanted. */
void pm_chunk_wake(struct pm_chunk *chunk)
{
	if ((chunk->waits & WAITS_KIND) != HELD)
		chunk->waits = 0;
	chunk->takes = false;
}

/* Go over the chunks in which something is wanted, from where the last request ended. */
static void collect(struct build *build, enum pm_message_type type)
{
	struct pm_mm *mm = build->mm;
	size_t at = mm->wanted_at < mm->nchunks ? mm->wanted_at : 0;

	for (size_t seen = 0; seen < mm->nchunks && !build->full && mm->wanted; seen++) {
		struct pm_chunk *chunk = mm->chunks[at];

		if (chunk->wanted && !is_waiting(build, chunk, type) && !is_under_way(build, chunk)) {
			uint32_t before = build->n;
			bool held;

			build->left = false;
			held = is_held(build, chunk);
			if (held)
				;
			else if (type == PM_MERGE || type == PM_GIVE)
				build_merges(build, chunk);
			else
				build_ranges(build, chunk, type);
			if (held)
				chunk->waits = (uint32_t)chunk->wanted << 2 | HELD;
			else if (build->n > before || build->left || build->full)
				;
			else if (type == PM_MERGE)
				chunk->waits = pool_state(build);
			else if (type == PM_GIVE)
				chunk->takes = true;
		}
		pm_give_way();
		mm->wanted_at = at;
		if (!build->full)
			at = at + 1 < mm->nchunks ? at + 1 : 0;
		if (build->n && at == 0 && !build->full) /* requests are in the order of addresses */
			build->full = true;
	}
	mm->wanted_at = at;
}

static int keep(struct build *build, enum pm_message_type type, uint64_t seq)
{
	struct pm_request *request = malloc(sizeof(*request) + build->n * sizeof(struct pm_run)), **last;

	if (!request)
		return -ENOMEM;
	*request = (struct pm_request){.seq = seq, .type = type, .n = build->n, .segment = build->segments[0]};
	for (uint32_t i = 0; i < build->n; i++) {
		const struct pm_range *range = (const struct pm_range *)(const void *)&build->runs[i];

		if (type == PM_MERGE || type == PM_GIVE)
			request->runs[i] = build->runs[i];
		else
			request->runs[i] = (struct pm_run){
				.addr = range->start,
				.npages = (uint32_t)((range->end - range->start) >> PM_PAGE_SHIFT)};
	}
	for (last = &build->mm->asked; *last; last = &(*last)->next)
		;
	*last = request;
	return 0;
}

int pm_mm_take(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request_out *out)
{
	static const enum pm_message_type types[] = {PM_GIVE, PM_MERGE, PM_ZERO, PM_UNMERGE};
	struct pm_header *header = (struct pm_header *)(void *)scanner->datagram;
	struct build build = {.scanner = scanner, .mm = mm, .runs = (struct pm_run *)(void *)(header + 1)};
	enum pm_message_type type = PM_MERGE;
	int err;

	if (mm->deaf) { /* it can be asked again: what found no partner meanwhile is matched anew */
		mm->deaf = false;
		for (size_t c = 0; c < mm->nchunks; c++)
			for (uint32_t i = 0; i < mm->chunks[c]->n; i++)
				if (pm_page_state(mm->chunks[c], i) == PM_UNSHARED)
					pm_page_detach(scanner, mm->chunks[c], i, PM_LOOKED);
	}
	if (pm_hash_take(scanner, mm, out))
		return 1;
	if (!mm->wanted) {
		mm->held_since = 0;
		pm_give_close(scanner, mm, false);
		return 0;
	}
	build.hold = (scanner->in_pass || scanner->hashing) && mm->held_since && pm_now_ns() - mm->held_since < HOLD_NS;
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]) && !build.n; i++) {
		type = types[i];
		build.give = type == PM_GIVE;
		if ((build.give && (!mm->unclosed || (!build.hold && mm->asked_to_give == mm->given))) || (type == PM_ZERO && !scanner->zeros) || (type == PM_UNMERGE && !mm->pages[PM_RECALLED]))
			continue;
		build.full = false;
		collect(&build, type);
		if (build.give && !build.n && !build.hold)
			mm->asked_to_give = mm->given;
	}
	if (!build.n) {
		pm_give_close(scanner, mm, false);
		return 0;
	}
	for (uint32_t i = 0; i < build.nsegments; i++) {
		struct pm_segment *segment = scanner->pool.segments[build.segments[i]];

		if (build.give)
			segment->giving++;
		else
			pm_segment_seal(segment); /* failing would only mean that the agents refuse it */
		out->fds[i] = segment->fd;
	}
	*header = (struct pm_header){.type = type, .count = build.n, .seq = ++scanner->seq};
	err = keep(&build, type, header->seq);
	if (err)
		return err;
	scanner->counts.merge_requests += type != PM_UNMERGE;
	scanner->counts.unmerge_requests += type == PM_UNMERGE;
	out->seq = header->seq;
	out->datagram = scanner->datagram;
	out->length = sizeof(*header) + build.n * sizeof(struct pm_run);
	out->nfds = build.nsegments;
	return 1;
}

/* ---- answers ---- */

/* Perhaps the slot was made for two pages of which one differs: the end of the pass will tell whether others have it. */
static void note_lone(struct pm_scanner *scanner, uint32_t slot)
{
	if (scanner->nlone == scanner->lone_cap) {
		size_t cap = scanner->lone_cap ? scanner->lone_cap * 2 : 64;
		uint32_t *grown = realloc(scanner->lone, cap * sizeof(*grown));

		if (!grown) /* a page more than need be */
			return;
		scanner->lone = grown;
		scanner->lone_cap = cap;
	}
	scanner->lone[scanner->nlone++] = slot;
}

static void page_failed(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, uint32_t type, uint32_t why)
{
	uint32_t link = chunk->record[i].link;

	if (type == PM_GIVE)
		type = PM_MERGE;
	if (type == PM_UNMERGE) {
		struct pm_segment *segment = link == PM_REF_NONE ? NULL : pm_pool_segment(&scanner->pool, link);

		chunk->mm->changed = true;
		if (segment && segment->state == PM_SEGMENT_LIVE)
			pm_set_state(chunk, i, PM_MERGED);
		else
			pm_page_detach(scanner, chunk, i, PM_LOOKED);
		return;
	}
	if (scanner->tracing)
		pm_event(scanner, type == PM_MERGE ? PM_EVENT_MERGE : PM_EVENT_ZERO, chunk->mm->mm,
			 pm_chunk_address(chunk, i), type == PM_MERGE ? link : PM_NO_SLOT, -(int)why);
	pm_page_detach(scanner, chunk, i, PM_LOOKED);
	switch (why) {
	case PM_FAIL_DIFFERS:
		/* Equal by its sum, not by its bytes; if it has not been written either, another sum may tell. */
		if (type != PM_MERGE)
			break;
		chunk->record[i].link = PM_LINK_DIFFERS;
		note_lone(scanner, link);
		if (scanner->ndiffering < PM_DIFFERING) {
			scanner->differing[scanner->ndiffering++] = pm_page_number(chunk, i);
		}
		break;
	case PM_FAIL_WRITTEN:
		break;
	case PM_FAIL_GONE:
		chunk->mm->changed = true;
		break;
	case PM_FAIL_VMAS:
		pm_page_leave(chunk, i, PM_LINK_LEFT);
		chunk->mm->changed = true;
		break;
	default:
		pm_page_leave(chunk, i, PM_LINK_KNOWN);
		break;
	}
}

static void page_done(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, uint32_t type)
{
	uint32_t link = chunk->record[i].link;
	struct pm_segment *segment;

	chunk->mm->changed = true;
	if (type == PM_GIVE)
		type = PM_MERGE;
	if (type == PM_UNMERGE) {
		pm_page_detach(scanner, chunk, i, PM_NONE);
		return;
	}
	if (scanner->tracing)
		pm_event(scanner, type == PM_MERGE ? PM_EVENT_MERGE : PM_EVENT_ZERO, chunk->mm->mm,
			 pm_chunk_address(chunk, i), type == PM_MERGE ? link : PM_NO_SLOT, 0);
	if (type == PM_ZERO) {
		pm_page_detach(scanner, chunk, i, PM_LOOKED);
		pm_set_state(chunk, i, scanner->recalled ? PM_NONE : PM_ZEROED);
		if (!scanner->recalled) {
			chunk->record[i].sum = 1;
			chunk->mm->zero_fresh++;
			scanner->zero_fresh++;
		}
		return;
	}
	segment = pm_pool_segment(&scanner->pool, link);
	if (!segment || segment->state != PM_SEGMENT_LIVE) { /* retired meanwhile */
		pm_page_detach(scanner, chunk, i, PM_LOOKED);
		return;
	}
	if (chunk->huge) { /* a chunk is what one huge page covers */
		chunk->huge = false;
		scanner->counts.thp_splits++;
	}
	pm_slot_confirm(&scanner->pool, link);
	pm_set_state(chunk, i, scanner->recalled ? PM_RECALLED : PM_MERGED);
}

/* The part of a chunk's records that lies in [start, end): from the one given back to before *stop. */
static uint32_t within(const struct pm_chunk *chunk, uint64_t start, uint64_t end, uint32_t *stop)
{
	uint64_t low = pm_chunk_address(chunk, 0), high = pm_chunk_address(chunk, chunk->n);

	low = start > low ? start : low;
	high = end < high ? end : high;
	*stop = low < high ? (uint32_t)((high - chunk->base) >> PM_PAGE_SHIFT) - chunk->first : 0;
	return low < high ? (uint32_t)((low - chunk->base) >> PM_PAGE_SHIFT) - chunk->first : 0;
}

/* Go through the asked pages of [addr, addr + npages). */
#define FOR_ASKED(mm, addr, npages, chunk, i)                                                                        \
	for (uint64_t at_ = (addr), end_ = at_ + ((uint64_t)(npages) << PM_PAGE_SHIFT); at_ < end_;                  \
	     at_ = (at_ & ~(PM_CHUNK_BYTES - 1)) + PM_CHUNK_BYTES)                                                   \
		for (struct pm_chunk *chunk = pm_mm_chunk(mm, at_); chunk; chunk = NULL)                             \
			for (uint32_t stop_, i = within(chunk, at_, end_, &stop_); i < stop_; i++)                   \
				if (pm_page_state(chunk, i) == PM_ASKED)

/* Copies of gap pages are new pages: what was known of their writes is lost. */
static void gap_copied(struct pm_scanner *scanner, struct pm_mm *mm, const struct pm_run *run)
{
	struct pm_chunk *chunk = pm_mm_chunk(mm, run->addr); /* a group is of one chunk */
	uint32_t stop = 0, i = chunk ? within(chunk, run->addr, run->addr + ((uint64_t)run->npages << PM_PAGE_SHIFT), &stop) : 0;

	for (; i < stop; i++)
		if (pm_page_state(chunk, i) == PM_UNSHARED)
			pm_page_detach(scanner, chunk, i, PM_LOOKED);
	scanner->counts.gap_pages += run->npages;
}

/* Failures may be of pages of this request only; the list is walked by address, and anything else in it is ignored. */
static void apply_failures(struct pm_scanner *scanner, struct pm_mm *mm, const struct pm_request *request,
			   const struct pm_failed *failed, uint32_t n)
{
	for (uint32_t f = 0; f < n; f++) {
		uint64_t start = failed[f].addr, end = start + ((uint64_t)failed[f].npages << PM_PAGE_SHIFT);
		uint32_t low = 0, high = request->n;

		if (end < start)
			end = UINT64_MAX;
		if (failed[f].why < sizeof(scanner->counts.failed) / sizeof(scanner->counts.failed[0]))
			scanner->counts.failed[failed[f].why] += failed[f].npages;
		while (low < high) { /* the first run that ends after `start`: runs are in the order of addresses */
			uint32_t mid = (low + high) / 2;
			const struct pm_run *run = &request->runs[mid];

			if (run->addr + ((uint64_t)run->npages << PM_PAGE_SHIFT) <= start)
				low = mid + 1;
			else
				high = mid;
		}
		for (; low < request->n && request->runs[low].addr < end; low++) {
			const struct pm_run *run = &request->runs[low];
			uint64_t from = run->addr > start ? run->addr : start;
			uint64_t to = run->addr + ((uint64_t)run->npages << PM_PAGE_SHIFT);

			if (to > end)
				to = end;
			if (run->flags & PM_RUN_GAP || to <= from)
				continue;
			FOR_ASKED(mm, from, (to - from) >> PM_PAGE_SHIFT, chunk, i)
				page_failed(scanner, chunk, i, request->type, failed[f].why);
		}
	}
}

static void gave(struct pm_scanner *scanner, const struct pm_mm *mm, uint32_t id)
{
	struct pm_segment *segment = id < scanner->pool.nsegments ? scanner->pool.segments[id] : NULL;

	if (segment && segment->donor == mm->mm && segment->giving)
		segment->giving--;
}

int pm_mm_answer(struct pm_scanner *scanner, struct pm_mm *mm, const void *datagram, size_t length)
{
	struct pm_request **at, *request;
	struct pm_failed *failed;
	struct pm_header header;
	struct pm_result result;
	size_t bytes;

	if (length < sizeof(header) || length > PM_MESSAGE_MAX)
		return -EINVAL;
	memcpy(&header, datagram, sizeof(header));
	if (header.type == PM_HASHES)
		return pm_hash_answer(scanner, mm, &header, (const char *)datagram + sizeof(header), length - sizeof(header));
	if (length < sizeof(header) + sizeof(result))
		return -EINVAL;
	memcpy(&result, (const char *)datagram + sizeof(header), sizeof(result));
	bytes = length - sizeof(header) - sizeof(result);
	if (header.type != PM_RESULT || bytes != (size_t)header.count * sizeof(*failed))
		return -EINVAL;
	for (at = &mm->asked; *at && (*at)->seq != header.seq; at = &(*at)->next)
		;
	request = *at;
	if (!request || request->type == PM_HASH)
		return -EINVAL;
	failed = malloc(bytes + 1);
	if (!failed)
		return -ENOMEM;
	memcpy(failed, (const char *)datagram + sizeof(header) + sizeof(result), bytes);
	*at = request->next;
	mm->at_work = result.at_work;
	apply_failures(scanner, mm, request, failed, header.count);
	for (uint32_t r = 0; r < request->n; r++) {
		const struct pm_run *run = &request->runs[r];

		if (run->flags & PM_RUN_GAP) {
			gap_copied(scanner, mm, run);
			continue;
		}
		FOR_ASKED(mm, run->addr, run->npages, chunk, i)
		{
			if (result.error) /* how far it came is for /proc/PID/maps to tell */
				page_failed(scanner, chunk, i, request->type, PM_FAIL_GONE);
			else
				page_done(scanner, chunk, i, request->type);
		}
		pm_give_way();
	}
	if (request->type == PM_GIVE)
		gave(scanner, mm, request->segment);
	pm_mm_put_off(mm);
	free(failed);
	free(request);
	for (size_t i = 0; i < scanner->ndiffering; i++)
		pm_match_anew(scanner, scanner->differing[i]);
	scanner->ndiffering = 0;
	return 0;
}

static void forget_all(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request **list)
{
	while (*list) {
		struct pm_request *next = (*list)->next;

		pm_hash_forget(scanner, mm, *list);
		*list = next;
	}
}

void pm_mm_lost(struct pm_scanner *scanner, struct pm_mm *mm)
{
	mm->deaf = true;
	mm->stale = true;
	mm->collecting = NULL;
	forget_all(scanner, mm, &mm->asked);
	forget_all(scanner, mm, &mm->to_hash);
	for (size_t c = 0; c < mm->nchunks; c++)
		for (uint32_t i = 0; i < mm->chunks[c]->n; i++) {
			unsigned int state = pm_page_state(mm->chunks[c], i);

			if (state == PM_ASKED || state == PM_PENDING || state == PM_RECALLED)
				pm_page_detach(scanner, mm->chunks[c], i, PM_LOOKED);
		}
	pm_give_close(scanner, mm, true);
}

void pm_mm_unmerge(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t start, uint64_t end)
{
	for (size_t c = pm_mm_chunk_at(mm, start); c < mm->nchunks && mm->chunks[c]->base < end; c++) {
		struct pm_chunk *chunk = mm->chunks[c];

		for (uint32_t i = 0; i < chunk->n; i++) {
			uint64_t address = pm_chunk_address(chunk, i);

			if (address < start || address >= end)
				continue;
			if (pm_page_state(chunk, i) == PM_PENDING)
				pm_page_detach(scanner, chunk, i, PM_LOOKED);
			else if (pm_page_state(chunk, i) == PM_MERGED)
				pm_set_state(chunk, i, PM_RECALLED);
		}
	}
}

void pm_unmerge_all(struct pm_scanner *scanner)
{
	scanner->recalled = true;
	scanner->in_pass = 0;
	for (struct pm_mm *mm = scanner->mms; mm; mm = mm->next) {
		mm->in_pass = false;
		for (size_t c = 0; c < mm->nchunks; c++)
			for (uint32_t i = 0; i < mm->chunks[c]->n; i++) {
				unsigned int state = pm_page_state(mm->chunks[c], i);

				if (state == PM_MERGED)
					pm_set_state(mm->chunks[c], i, PM_RECALLED);
				else if (state != PM_ASKED && state != PM_RECALLED)
					pm_page_detach(scanner, mm->chunks[c], i, PM_NONE);
			}
	}
}
