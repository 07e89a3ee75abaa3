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

/* Sums of `n` adjacent pages: the low 32 bits of their hashes, which is what the index keeps. */
void pm_page_sums(const void *pages, size_t n, uint32_t *sums);

/* The same, all 64 bits. */
void pm_page_hashes(const void *pages, size_t n, uint64_t *hashes);

#endif
