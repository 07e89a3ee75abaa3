/* SPDX-License-Identifier: MIT */
/*
 * The loops over a page's bytes.  Compiled once for each set of vector instructions: the including file's compiler
 * flags decide, and PM_VARIANT names the functions.
 */
#include "hash_table.h"

#include <string.h>

#define XXH_INLINE_ALL
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#include <xxhash.h>
#pragma GCC diagnostic pop

static uint64_t hash_one(const void *page)
{
	return XXH3_64bits(page, PM_PAGE_SIZE);
}

static bool zero_one(const void *page)
{
	const char *p = page;
	uint64_t any[8];

	/* Most pages differ from zero in their first bytes; whole cache lines after that. */
	for (size_t at = 0; at < PM_PAGE_SIZE; at += 256) {
		uint64_t sum = 0;

		for (size_t line = 0; line < 256; line += sizeof(any)) {
			memcpy(any, p + at + line, sizeof(any));
			for (size_t i = 0; i < 8; i++)
				sum |= any[i];
		}
		if (sum)
			return false;
	}
	return true;
}

static void hash_many(const void *pages, size_t n, uint64_t *hashes)
{
	for (size_t i = 0; i < n; i++)
		hashes[i] = hash_one((const char *)pages + i * PM_PAGE_SIZE);
}

static void sum_many(const void *pages, size_t n, uint32_t *sums)
{
	for (size_t i = 0; i < n; i++)
		sums[i] = (uint32_t)hash_one((const char *)pages + i * PM_PAGE_SIZE);
}

const struct pm_hash_table PM_VARIANT = {
	.name = PM_VARIANT_NAME,
	.hash = hash_one,
	.is_zero = zero_one,
	.hashes = hash_many,
	.sums = sum_many,
};
