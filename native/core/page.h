/* SPDX-License-Identifier: MIT */
/* Pages: their size here, and what is asked of their content. */
#ifndef PM_PAGE_H
#define PM_PAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys.h"

/* Name of the variant of the code in use: "avx512", "avx2" or "base". */
const char *pm_hash_variant(void);

/* XXH3-64 of one page. */
uint64_t pm_page_hash(const void *page);

/* Whether a page is all zero. */
bool pm_page_is_zero(const void *page);

/* Of `n` adjacent pages. */
void pm_page_hashes(const void *pages, size_t n, uint64_t *hashes);

/*
 * What pages are matched by, which only has to be the same for equal pages: in the low half a hash of an eighth of the page, read four times as fast as the whole; in the
 * high half one of all of it if `whole`, otherwise, or rather where that was not needed, 0.  Neither half of a page that is known whole is 0.  A part of all contents, told by
 * the low half, is known whole in any case: by them it can be seen what the low half is worth.
 */
#define PM_PROOF_BITS 6
static inline bool pm_key_is_proof(uint64_t key)
{
	return (key & ((1 << PM_PROOF_BITS) - 1)) == 0;
}

uint64_t pm_page_key(const void *page, bool whole);
void pm_page_keys(const void *pages, size_t n, bool whole, uint64_t *keys);

#endif
