/* SPDX-License-Identifier: MIT */
/* Hashes of pages, by the widest vector instructions that this machine has. */
#include "hash_table.h"

#include <stdlib.h>
#include <string.h>

static const struct pm_hash_table *chosen = &pm_hash_base;

__attribute__((constructor)) static void choose(void)
{
#ifdef __x86_64__
	const char *want = getenv("PAGEMERGE_HASH"); /* for tests: an older machine's code */

	__builtin_cpu_init();
	if (want && strcmp(want, "base") == 0)
		return;
	if (__builtin_cpu_supports("avx2"))
		chosen = &pm_hash_avx2;
	if (want && strcmp(want, "avx2") == 0)
		return;
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
		chosen = &pm_hash_avx512;
#endif
}

const char *pm_hash_variant(void)
{
	return chosen->name;
}

uint64_t pm_page_hash(const void *page)
{
	return chosen->hash(page);
}

bool pm_page_is_zero(const void *page)
{
	return chosen->is_zero(page);
}

void pm_page_hashes(const void *pages, size_t n, uint64_t *hashes)
{
	chosen->hashes(pages, n, hashes);
}

uint64_t pm_page_key(const void *page, bool whole)
{
	uint64_t key = chosen->key(page, whole);

	return whole || !pm_key_is_proof(key) ? key : chosen->key(page, true);
}

void pm_page_keys(const void *pages, size_t n, bool whole, uint64_t *keys)
{
	chosen->keys(pages, n, whole, keys);
	for (size_t i = 0; i < n && !whole; i++)
		if (pm_key_is_proof(keys[i]))
			keys[i] = chosen->key((const char *)pages + i * PM_PAGE_SIZE, true);
}
