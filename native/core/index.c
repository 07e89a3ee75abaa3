/* SPDX-License-Identifier: MIT */
#include "index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	SIZE_MIN = 256, /* a power of two */
	SIZE_MAX_CHAINS = 1 << 30,
	GROW_SHARE = 16, /* of its size, by which the table is made larger */
	STEPS = 5, /* of a chain that are fetched ahead: a page that is found has LOAD_MAX others in its chain, on average */
	LOAD_MAX = 2, /* entries a chain; the price of a longer chain is a cache miss for each record on it */
};

static void start(struct pm_index *index, uint32_t *heads, uint32_t cap)
{
	memset(heads, 0xff, SIZE_MIN * sizeof(*heads)); /* PM_REF_NONE */
	index->heads = heads;
	index->cap = cap;
	index->size = SIZE_MIN;
	index->mask = SIZE_MIN - 1;
	index->count = 0;
}

int pm_index_init(struct pm_index *index, struct pm_chunks *chunks, struct pm_pool *pool)
{
	uint32_t *heads = malloc(SIZE_MIN * sizeof(*heads));

	*index = (struct pm_index){.chunks = chunks, .pool = pool};
	if (!heads)
		return -ENOMEM;
	start(index, heads, SIZE_MIN);
	return 0;
}

void pm_index_deinit(struct pm_index *index)
{
	free(index->heads);
	memset(index, 0, sizeof(*index));
}

void pm_index_clear(struct pm_index *index)
{
	uint32_t *heads = realloc(index->heads, SIZE_MIN * sizeof(*heads));

	start(index, heads ? heads : index->heads, heads ? SIZE_MIN : index->cap);
}

static uint32_t *link_of(const struct pm_index *index, uint32_t ref)
{
	struct pm_chunk *chunk;
	uint32_t i;

	if (ref & PM_REF_SLOT) {
		uint32_t slot = ref & ~PM_REF_SLOT;

		return &pm_pool_segment(index->pool, slot)->record[pm_slot_position(slot)].link;
	}
	chunk = pm_chunk_of(index->chunks, ref, &i);
	return &chunk->record[i].link;
}

uint32_t pm_ref_sum(const struct pm_index *index, uint32_t ref)
{
	struct pm_chunk *chunk;
	uint32_t i;

	if (ref & PM_REF_SLOT) {
		uint32_t slot = ref & ~PM_REF_SLOT;

		return pm_pool_segment(index->pool, slot)->record[pm_slot_position(slot)].sum;
	}
	chunk = pm_chunk_of(index->chunks, ref, &i);
	return chunk->record[i].sum;
}

/* A call that does no more than this would be taken for one without any effect, and left out. */
static inline __attribute__((always_inline)) void prefetch(const struct pm_index *index, uint32_t ref)
{
	uint32_t i;

	if (ref == PM_REF_NONE)
		return;
	if (ref & PM_REF_SLOT) {
		const struct pm_segment *segment = pm_pool_segment(index->pool, ref & ~PM_REF_SLOT);

		__builtin_prefetch(&segment->record[pm_slot_position(ref & ~PM_REF_SLOT)]);
	} else {
		const struct pm_chunk *chunk = pm_chunk_of(index->chunks, ref, &i);

		__builtin_prefetch(&chunk->record[i]);
		__builtin_prefetch(&chunk->state[i]);
	}
}

/* A step along all chains at a time: each entry is a cache miss, and says only then which is the next. */
void pm_index_prefetch_chains(const struct pm_index *index, const uint32_t *sums, uint32_t n)
{
	uint32_t refs[PM_PREFETCHED];

	for (uint32_t i = 0; i < n; i++)
		prefetch(index, refs[i] = *pm_index_head(index, sums[i]));
	for (uint32_t step = 1; step < STEPS; step++)
		for (uint32_t i = 0; i < n; i++)
			if (refs[i] != PM_REF_NONE)
				prefetch(index, refs[i] = *link_of(index, refs[i]));
}

static uint32_t matching(const struct pm_index *index, uint32_t ref, uint32_t sum)
{
	while (ref != PM_REF_NONE && pm_ref_sum(index, ref) != sum)
		ref = *link_of(index, ref);
	return ref;
}

uint32_t pm_index_first(const struct pm_index *index, uint32_t sum)
{
	return matching(index, *pm_index_head(index, sum), sum);
}

uint32_t pm_index_next(const struct pm_index *index, uint32_t ref, uint32_t sum)
{
	return matching(index, *link_of(index, ref), sum);
}

/* Room for more chains; false: there is none, and longer chains are slower, not wrong. */
static bool make_room(struct pm_index *index)
{
	uint32_t cap = index->cap + index->cap / GROW_SHARE;
	uint32_t *heads = cap > SIZE_MAX_CHAINS ? NULL : realloc(index->heads, cap * sizeof(*heads));

	if (!heads)
		return false;
	index->heads = heads;
	index->cap = cap;
	return true;
}

/* A chain more: what belongs to it was in the one that its first bit does not tell from it. */
static void grow(struct pm_index *index)
{
	uint32_t fresh = index->size, mask = fresh > index->mask ? index->mask << 1 | 1 : index->mask;
	uint32_t *low, *high;

	if (index->size == index->cap && !make_room(index))
		return;
	low = &index->heads[fresh & mask >> 1];
	high = &index->heads[fresh];
	/* Appending keeps their order, in which slots with room come first. */
	for (uint32_t ref = *low; ref != PM_REF_NONE;) {
		uint32_t *link = link_of(index, ref), next = *link;
		uint32_t **tail = (pm_ref_sum(index, ref) & mask) == fresh ? &high : &low;

		**tail = ref;
		*tail = link;
		ref = next;
	}
	*low = PM_REF_NONE;
	*high = PM_REF_NONE;
	index->mask = mask;
	index->size++;
}

void pm_index_insert(struct pm_index *index, uint32_t ref, uint32_t sum)
{
	uint32_t *head;

	if (index->count >= index->size * (uint64_t)LOAD_MAX)
		grow(index);
	head = pm_index_head(index, sum);
	*link_of(index, ref) = *head;
	*head = ref;
	index->count++;
}

bool pm_index_remove(struct pm_index *index, uint32_t ref, uint32_t sum)
{
	uint32_t *at = pm_index_head(index, sum);

	while (*at != PM_REF_NONE && *at != ref)
		at = link_of(index, *at);
	if (*at == PM_REF_NONE)
		return false;
	*at = *link_of(index, ref);
	index->count--;
	return true;
}

