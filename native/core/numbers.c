/* SPDX-License-Identifier: MIT */
#include "numbers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Pages that have a record in the kernel's sense: an rmap_item. */
static uint64_t items(const struct pm_mm *mm)
{
	uint64_t n = mm->zero_fresh;

	for (int state = PM_LOOKED; state < PM_STATES; state++)
		if (state != PM_ZEROED)
			n += mm->pages[state];
	return n;
}

static uint64_t merged(const struct pm_mm *mm)
{
	return mm->pages[PM_MERGED] + mm->pages[PM_RECALLED];
}

static uint64_t index_bytes(const struct pm_scanner *scanner)
{
	return pm_index_metadata(&scanner->index) + scanner->pool.metadata;
}

size_t pm_counters(const struct pm_scanner *scanner, struct pm_number *out)
{
	uint64_t all = 0, using = 0, zero = 0, unshared = 0, left = 0, segments = 0, processes = 0, vmas = 0;
	uint64_t pending = 0;
	const struct pm_counts *counts = &scanner->counts;
	uint64_t shared = scanner->pool.shared, sharing;
	size_t n = 0;

	for (const struct pm_mm *mm = scanner->mms; mm; mm = mm->next) {
		all += items(mm);
		using += merged(mm);
		zero += mm->pages[PM_ZEROED];
		unshared += mm->pages[PM_UNSHARED];
		pending += mm->pages[PM_PENDING] + mm->pages[PM_ASKED];
		left += mm->left_for_vmas;
		vmas += mm->vmas;
		processes++;
	}
	for (uint32_t i = 0; i < scanner->pool.nsegments; i++)
		segments += scanner->pool.segments[i] != NULL;
	sharing = using > shared ? using - shared : 0;
#define PUT(key, number) out[n++] = (struct pm_number){key, (int64_t)(number)}
	PUT("pages_shared", shared);
	PUT("pages_sharing", sharing);
	PUT("pages_unshared", unshared);
	PUT("pages_volatile", all > shared + sharing + unshared ? all - shared - sharing - unshared : 0);
	PUT("pages_scanned", counts->pages_scanned);
	PUT("pages_skipped", counts->pages_skipped);
	PUT("ksm_zero_pages", zero);
	PUT("stable_node_chains", scanner->chains);
	PUT("stable_node_dups", scanner->dups);
	PUT("rmap_items", all);
	PUT("general_profit", (int64_t)((sharing + zero) * PM_PAGE_SIZE) - (int64_t)pm_metadata(scanner));
	PUT("metadata_bytes", pm_metadata(scanner));
	PUT("pool_bytes", scanner->pool.written_live * PM_PAGE_SIZE);
	PUT("pool_retired_bytes", scanner->pool.written_retired * PM_PAGE_SIZE);
	PUT("segments", segments);
	PUT("segments_retired", counts->segments_retired);
	PUT("segments_dropped", counts->segments_dropped);
	PUT("processes", processes);
	PUT("vmas", vmas);
	PUT("pages_pending", pending);
	PUT("merges_left_for_vmas", left);
	PUT("merge_requests", counts->merge_requests);
	PUT("unmerge_requests", counts->unmerge_requests);
	PUT("merge_failures_differs", counts->failed[PM_FAIL_DIFFERS]);
	PUT("merge_failures_written", counts->failed[PM_FAIL_WRITTEN]);
	PUT("merge_failures_gone", counts->failed[PM_FAIL_GONE]);
	PUT("merge_failures_vmas", counts->failed[PM_FAIL_VMAS]);
	PUT("merge_failures_barrier", counts->failed[PM_FAIL_BARRIER]);
	PUT("merge_failures_stack", counts->failed[PM_FAIL_STACK]);
	PUT("merge_failures_system", counts->failed[PM_FAIL_SYSTEM]);
	PUT("breaks", counts->breaks);
	PUT("thp_splits", counts->thp_splits);
	PUT("gap_pages", counts->gap_pages);
	PUT("bytes_read", counts->bytes_read);
	PUT("bytes_hashed", counts->bytes_hashed);
	PUT("read_errors", counts->read_errors);
	PUT("write_errors", counts->write_errors);
	return n;
}

size_t pm_process(const struct pm_scanner *scanner, const struct pm_mm *mm, struct pm_number *out)
{
	uint64_t all = 0, own = items(mm), metadata = mm->bytes, tracked = 0;
	size_t n = 0;

	for (const struct pm_mm *other = scanner->mms; other; other = other->next)
		all += items(other);
	if (all) /* its share of what belongs to nobody alone */
		metadata += (uint64_t)((double)index_bytes(scanner) * (double)own / (double)all);
	for (size_t r = 0; r < mm->nregions; r++)
		tracked += mm->regions[r].tracked;
	PUT("ksm_rmap_items", own);
	PUT("ksm_merging_pages", merged(mm));
	PUT("ksm_zero_pages", mm->pages[PM_ZEROED]);
	PUT("ksm_process_profit", (int64_t)((merged(mm) + mm->pages[PM_ZEROED]) * PM_PAGE_SIZE) - (int64_t)metadata);
	PUT("ksm_merge_any", mm->all);
	PUT("ksm_mergeable", mm->nregions > 0);
	PUT("pages_unshared", mm->pages[PM_UNSHARED]);
	PUT("pages_volatile", mm->pages[PM_LOOKED] + mm->pages[PM_PENDING] + mm->pages[PM_ASKED] + mm->zero_fresh);
	PUT("pages_pending", mm->pages[PM_PENDING] + mm->pages[PM_ASKED] + mm->pages[PM_RECALLED]);
	PUT("merges_left_for_vmas", mm->left_for_vmas);
	PUT("breaks", mm->breaks);
	PUT("vmas", mm->vmas);
	PUT("regions", mm->nregions);
	PUT("regions_tracked", tracked);
	PUT("metadata_bytes", metadata);
	return n;
}
#undef PUT

ssize_t pm_regions(const struct pm_mm *mm, struct pm_region_numbers **out)
{
	struct pm_region_numbers *list = calloc(mm->nregions + 1, sizeof(*list));
	size_t r = 0;

	if (!list)
		return -ENOMEM;
	for (size_t i = 0; i < mm->nregions; i++) {
		list[i].start = mm->regions[i].start;
		list[i].end = mm->regions[i].end;
		memcpy(list[i].name, mm->regions[i].name, sizeof(list[i].name));
	}
	for (size_t c = 0; c < mm->nchunks; c++) {
		const struct pm_chunk *chunk = mm->chunks[c];

		for (uint32_t i = 0; i < chunk->n; i++) {
			unsigned int state = pm_page_state(chunk, i);
			uint64_t address = pm_chunk_address(chunk, i);

			while (r < mm->nregions && list[r].end <= address)
				r++;
			if (r == mm->nregions)
				break;
			if (state == PM_NONE || list[r].start > address)
				continue;
			list[r].pages++;
			list[r].merged += state == PM_MERGED || state == PM_RECALLED;
			list[r].zero += state == PM_ZEROED;
			list[r].unshared += state == PM_UNSHARED;
		}
	}
	*out = list;
	return (ssize_t)mm->nregions;
}

ssize_t pm_take_events(struct pm_scanner *scanner, struct pm_event **out, uint64_t *lost)
{
	size_t n = (size_t)(scanner->event_head - scanner->event_tail);

	*out = malloc((n + 1) * sizeof(**out));
	if (!*out)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		(*out)[i] = scanner->events[scanner->event_tail++ % PM_EVENTS];
	*lost = scanner->events_lost;
	scanner->events_lost = 0;
	return (ssize_t)n;
}

bool pm_page_merged(const struct pm_mm *mm, uint64_t address)
{
	const struct pm_chunk *chunk = pm_mm_chunk(mm, address);

	if (!chunk || address < pm_chunk_address(chunk, 0) || address >= pm_chunk_address(chunk, chunk->n))
		return false;
	return pm_page_state(chunk, (uint32_t)((address - pm_chunk_address(chunk, 0)) >> PM_PAGE_SHIFT)) == PM_MERGED;
}
