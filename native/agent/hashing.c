/* SPDX-License-Identifier: MIT */
/*
 * Hashing pages where they are, for the daemon: half the cost of its reading them, which pins each page and copies it.
 *
 * Memory that could go away while it is looked at would end the program.  So it is looked at behind the gate, and only where each call that could take it
 * away is one that the agent sees; elsewhere it is read by the kernel, which says when it is not there.
 */
#include "hashing.h"

#include <sys/mman.h>

#include "group.h"
#include "marks.h"
#include "page.h"
#include "step_back.h"

enum { PIECE_PAGES = 256 }; /* the gate is closed for some 100 µs */

/* Private memory that can be read, all of it. */
static bool is_readable(uint64_t start, uint64_t end)
{
	for (uint64_t at = start; at < end;) {
		struct pm_vma vma;

		if (pm_vma_find(at, &vma) || vma.start > at || vma.shared || !(vma.anonymous || vma.pool) || !(vma.prot & PROT_READ))
			return false;
		at = vma.end;
	}
	return true;
}

/* False: it can't be looked at in place. */
static bool hash_in_place(uint64_t start, uint64_t end, bool whole, uint64_t *keys)
{
	bool can;

	if (!pm_marks_seen(start, end) || pm_gate_close(start, end))
		return false;
	can = pm_marks_seen(start, end) && is_readable(start, end);
	if (can)
		pm_page_keys((const void *)(uintptr_t)start, (end - start) >> PM_PAGE_SHIFT, whole, keys);
	pm_gate_open();
	return can;
}

static void hash_copies(uint64_t start, uint64_t end, bool whole, uint64_t *keys)
{
	static unsigned char page[PM_PAGE_SIZE] __attribute__((aligned(4096)));

	for (; start < end; start += PM_PAGE_SIZE)
		*keys++ = pm_read_self(page, start, PM_PAGE_SIZE) ? 0 : pm_page_key(page, whole);
}

uint32_t pm_hash_ranges(const struct pm_range *ranges, uint32_t count, uint64_t *keys)
{
	uint32_t n = 0;

	pm_vma_begin();
	for (uint32_t i = 0; i < count; i++) {
		bool whole = ranges[i].flags & PM_HASH_WHOLE;

		for (uint64_t at = ranges[i].start, to; at < ranges[i].end; at = to) {
			to = ranges[i].end - at > pm_bytes(PIECE_PAGES) ? at + pm_bytes(PIECE_PAGES) : ranges[i].end;
			if (!hash_in_place(at, to, whole, keys + n))
				hash_copies(at, to, whole, keys + n);
			n += (uint32_t)((to - at) >> PM_PAGE_SHIFT);
			pm_give_way();
		}
	}
	pm_vma_end();
	return n;
}
