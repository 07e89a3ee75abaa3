/* SPDX-License-Identifier: MIT */
/* Parts of another process's memory that the kernel unmerges in a short time. */
#ifndef PM_SLICE_H
#define PM_SLICE_H

#include <stdint.h>

struct pm_slice {
	uint64_t pages;   /* of the address space, whether there is anything or not */
	uint64_t present; /* of these: mapped to memory */
	uint64_t merged;  /* of these: KSM's, or the zero page */
};

/*
 * Where a slice that begins at `start` ends, so that none of its numbers goes beyond `most` (each at least 1), and not
 * after `end`; what it has, in *slice. `pagemap` and `kpageflags` are open files of /proc; kpageflags -1, or page frames
 * that are hidden: every page that may be merged counts as merged. What can't be read has nothing present.
 */
uint64_t pm_slice_end(int pagemap, int kpageflags, uint64_t start, uint64_t end, const struct pm_slice *most,
		      struct pm_slice *slice);

#endif
