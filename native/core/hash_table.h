/* SPDX-License-Identifier: MIT */
/* The variants of the hashing code, and the choice between them at run time. */
#ifndef PM_HASH_TABLE_H
#define PM_HASH_TABLE_H

#include "page.h"

struct pm_hash_table {
	const char *name;
	uint64_t (*hash)(const void *page);
	bool (*is_zero)(const void *page);
	void (*hashes)(const void *pages, size_t n, uint64_t *hashes);
	uint64_t (*key)(const void *page, bool whole);
	void (*keys)(const void *pages, size_t n, bool whole, uint64_t *keys);
};

extern const struct pm_hash_table pm_hash_base;
#ifdef __x86_64__
extern const struct pm_hash_table pm_hash_avx2;
extern const struct pm_hash_table pm_hash_avx512;
#endif

#endif
