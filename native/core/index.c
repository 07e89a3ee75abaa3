/* SPDX-License-Identifier: MIT */
#include "index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	SIZE_MIN = 256,
	LOAD_MAX = 2, /* entries a chain; the price of a longer chain is a cache miss for each record on it */
};

static uint32_t *heads_create(uint32_t size)
{
	uint32_t *heads = malloc(size * sizeof(*heads));

	if (heads)
		memset(heads, 0xff, size * sizeof(*heads)); /* PM_REF_NONE */
	return heads;
}

int pm_index_init(struct pm_index *index, struct pm_chunks *chunks, struct pm_pool *pool)
{
	*index = (struct pm_index){.chunks = chunks, .pool = pool, .size = SIZE_MIN};
	index->heads = heads_create(SIZE_MIN);
	return index->heads ? 0 : -ENOMEM;
}

void pm_index_deinit(struct pm_index *index)
{
	free(index->heads);
	memset(index, 0, sizeof(*index));
}

void pm_index_clear(struct pm_index *index)
{
	uint32_t *heads = heads_create(SIZE_MIN);

	if (heads) {
		free(index->heads);
		index->heads = heads;
		index->size = SIZE_MIN;
	} else {
		memset(index->heads, 0xff, index->size * sizeof(*index->heads));
	}
	index->count = 0;
}

static uint32_t *link_of(const struct pm_index *index, uint32_t ref)
{
	struct pm_chunk *chunk;
	uint32_t i;

	if (ref & PM_REF_SLOT) {
		uint32_t slot = ref & ~PM_REF_SLOT;

		return &pm_pool_segment(index->pool, slot)->next[pm_slot_position(slot)];
	}
	chunk = pm_chunk_of(index->chunks, ref, &i);
	return &chunk->link[i];
}

uint32_t pm_ref_sum(const struct pm_index *index, uint32_t ref)
{
	struct pm_chunk *chunk;
	uint32_t i;

	if (ref & PM_REF_SLOT) {
		uint32_t slot = ref & ~PM_REF_SLOT;

		return pm_pool_segment(index->pool, slot)->sum[pm_slot_position(slot)];
	}
	chunk = pm_chunk_of(index->chunks, ref, &i);
	return chunk->sum[i];
}

void pm_index_prefetch_entry(const struct pm_index *index, uint32_t sum)
{
	uint32_t ref = index->heads[sum & (index->size - 1)], i;

	if (ref == PM_REF_NONE)
		return;
	if (ref & PM_REF_SLOT) {
		const struct pm_segment *segment = pm_pool_segment(index->pool, ref & ~PM_REF_SLOT);

		__builtin_prefetch(&segment->sum[pm_slot_position(ref & ~PM_REF_SLOT)]);
		__builtin_prefetch(&segment->next[pm_slot_position(ref & ~PM_REF_SLOT)]);
	} else {
		const struct pm_chunk *chunk = pm_chunk_of(index->chunks, ref, &i);

		__builtin_prefetch(&chunk->sum[i]);
		__builtin_prefetch(&chunk->link[i]);
		__builtin_prefetch(&chunk->state[i]);
	}
}

static uint32_t matching(const struct pm_index *index, uint32_t ref, uint32_t sum)
{
	while (ref != PM_REF_NONE && pm_ref_sum(index, ref) != sum)
		ref = *link_of(index, ref);
	return ref;
}

uint32_t pm_index_first(const struct pm_index *index, uint32_t sum)
{
	return matching(index, index->heads[sum & (index->size - 1)], sum);
}

uint32_t pm_index_next(const struct pm_index *index, uint32_t ref, uint32_t sum)
{
	return matching(index, *link_of(index, ref), sum);
}

static void grow(struct pm_index *index)
{
	uint32_t size = index->size * 2;
	uint32_t *heads = size ? heads_create(size) : NULL;

	if (!heads) /* longer chains are slower, not wrong */
		return;
	for (uint32_t i = 0; i < index->size; i++) {
		/* A chain falls into two; appending keeps its order, in which slots with room come first. */
		uint32_t *low = &heads[i], *high = &heads[i + index->size];

		for (uint32_t ref = index->heads[i]; ref != PM_REF_NONE;) {
			uint32_t *link = link_of(index, ref), next = *link;
			uint32_t **tail = pm_ref_sum(index, ref) & index->size ? &high : &low;

			**tail = ref;
			*tail = link;
			ref = next;
		}
		*low = PM_REF_NONE;
		*high = PM_REF_NONE;
	}
	free(index->heads);
	index->heads = heads;
	index->size = size;
}

void pm_index_insert(struct pm_index *index, uint32_t ref, uint32_t sum)
{
	uint32_t *head;

	if (index->count >= index->size * (uint64_t)LOAD_MAX)
		grow(index);
	head = &index->heads[sum & (index->size - 1)];
	*link_of(index, ref) = *head;
	*head = ref;
	index->count++;
}

bool pm_index_remove(struct pm_index *index, uint32_t ref, uint32_t sum)
{
	uint32_t *at = &index->heads[sum & (index->size - 1)];

	while (*at != PM_REF_NONE && *at != ref)
		at = link_of(index, *at);
	if (*at == PM_REF_NONE)
		return false;
	*at = *link_of(index, ref);
	index->count--;
	return true;
}

