/* SPDX-License-Identifier: MIT */
/*
 * The index: from a sum to the slots and the unshared pages that have it.
 *
 * A table of chains.  The chain's links are the pages' and slots' own records, so an entry costs its share of the table
 * alone: two bytes and a bit.  It grows by a chain at a time (linear hashing): doubling would have it half empty
 * afterwards, and everybody wait meanwhile.
 */
#ifndef PM_INDEX_H
#define PM_INDEX_H

#include "chunk.h"

struct pm_index {
	struct pm_chunks *chunks;
	struct pm_pool *pool;
	uint32_t *heads;
	uint32_t size, cap; /* chains, and room for so many */
	uint32_t mask;      /* the bits of a sum that tell its chain, or, of the chains that are not there yet, all but the first */
	uint32_t count;     /* entries */
};

int pm_index_init(struct pm_index *index, struct pm_chunks *chunks, struct pm_pool *pool);
void pm_index_deinit(struct pm_index *index);
void pm_index_clear(struct pm_index *index);

uint32_t pm_ref_sum(const struct pm_index *index, uint32_t ref);

/* The first reference with a sum, or PM_REF_NONE; and the next after `ref`. */
uint32_t pm_index_first(const struct pm_index *index, uint32_t sum);
uint32_t pm_index_next(const struct pm_index *index, uint32_t ref, uint32_t sum);

void pm_index_insert(struct pm_index *index, uint32_t ref, uint32_t sum);
/* Take `ref` out; false when it was not in. */
bool pm_index_remove(struct pm_index *index, uint32_t ref, uint32_t sum);

static inline uint32_t *pm_index_head(const struct pm_index *index, uint32_t sum)
{
	uint32_t at = sum & index->mask;

	return &index->heads[at < index->size ? at : at & index->mask >> 1];
}

static inline void pm_index_prefetch(const struct pm_index *index, uint32_t sum)
{
	__builtin_prefetch(pm_index_head(index, sum));
}

/* And, some time after that, the entries of a few sums' chains: of many at once they would drive each other out of the cache. */
enum { PM_PREFETCHED = 32 };
void pm_index_prefetch_chains(const struct pm_index *index, const uint32_t *sums, uint32_t n);

static inline uint64_t pm_index_metadata(const struct pm_index *index)
{
	return (uint64_t)index->cap * sizeof(*index->heads);
}

#endif
