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

/* One cache line of each eighth, at another place in each: fields of records that repeat are not all missed. */
static const uint16_t samples[] = {3 * 64, 14 * 64, 17 * 64, 28 * 64, 39 * 64, 42 * 64, 53 * 64, 56 * 64};
enum { SAMPLES = sizeof(samples) / sizeof(samples[0]), LINE = 64, AHEAD = 2 /* pages; what the processor does not foresee by itself */ };

static uint64_t key_one(const void *page, bool whole)
{
	uint64_t taken[SAMPLES * LINE / sizeof(uint64_t)], any = 0, all = 0;
	uint32_t low, high;

	for (size_t s = 0; s < SAMPLES; s++)
		memcpy((char *)taken + s * LINE, (const char *)page + samples[s], LINE);
	for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
		any |= taken[i];
	if (!any || whole)
		all = hash_one(page);
	/* Of pages that are mostly zero the samples tell nothing. */
	low = (uint32_t)(any ? XXH3_64bits(taken, sizeof(taken)) : all);
	high = (uint32_t)(all >> 32);
	return (uint64_t)(high ? high : all != 0) << 32 | (low ? low : 1);
}

static void key_many(const void *pages, size_t n, bool whole, uint64_t *keys)
{
	for (size_t i = 0; i < n; i++) {
		const char *page = (const char *)pages + i * PM_PAGE_SIZE;

		for (size_t s = 0; !whole && i + AHEAD < n && s < SAMPLES; s++)
			__builtin_prefetch(page + (size_t)AHEAD * PM_PAGE_SIZE + samples[s]);
		keys[i] = key_one(page, whole);
	}
}

const struct pm_hash_table PM_VARIANT = {
	.name = PM_VARIANT_NAME,
	.hash = hash_one,
	.is_zero = zero_one,
	.hashes = hash_many,
	.key = key_one,
	.keys = key_many,
};
