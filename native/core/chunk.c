/* SPDX-License-Identifier: MIT */
#include "chunk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { RECORD_BYTES = sizeof(struct pm_record) + 1 };

void pm_chunks_deinit(struct pm_chunks *chunks)
{
	for (uint32_t i = 0; i < chunks->count; i++)
		if (chunks->table[i])
			pm_chunk_destroy(chunks, chunks->table[i]);
	free(chunks->table);
	memset(chunks, 0, sizeof(*chunks));
}

static int records(uint32_t n, struct pm_record **record, uint8_t **state)
{
	char *memory = calloc(n, RECORD_BYTES);

	if (!memory)
		return -ENOMEM;
	*record = (struct pm_record *)(void *)memory;
	*state = (uint8_t *)(*record + n);
	return 0;
}

int pm_chunk_create(struct pm_chunks *chunks, struct pm_mm *mm, uint64_t base, uint32_t first, uint32_t n,
		    struct pm_chunk **out)
{
	struct pm_chunk *chunk;
	uint32_t id = chunks->free;

	while (id < chunks->count && chunks->table[id])
		id++;
	if (id == PM_CHUNKS_MAX - 1) /* the last number's pages would look like the special links */
		return -ENOSPC;
	if (id == chunks->cap) {
		uint32_t cap = chunks->cap ? chunks->cap * 2 : 64;
		struct pm_chunk **grown = realloc(chunks->table, cap * sizeof(struct pm_chunk *));

		if (!grown)
			return -ENOMEM;
		chunks->metadata += (cap - chunks->cap) * sizeof(struct pm_chunk *);
		chunks->table = grown;
		chunks->cap = cap;
	}
	chunk = calloc(1, sizeof(*chunk));
	if (!chunk)
		return -ENOMEM;
	if (records(n, &chunk->record, &chunk->state)) {
		free(chunk);
		return -ENOMEM;
	}
	chunk->mm = mm;
	chunk->base = base;
	chunk->id = id;
	chunk->window = PM_NO_SLOT;
	chunk->first = (uint16_t)first;
	chunk->n = (uint16_t)n;
	chunks->table[id] = chunk;
	chunks->free = id + 1;
	if (id == chunks->count)
		chunks->count++;
	chunks->metadata += sizeof(*chunk) + (uint64_t)n * RECORD_BYTES;
	*out = chunk;
	return 0;
}

int pm_chunk_extend(struct pm_chunks *chunks, struct pm_chunk *chunk, uint32_t first, uint32_t n)
{
	uint32_t end = first + n, old_end = (uint32_t)chunk->first + chunk->n, at;
	struct pm_record *record;
	uint8_t *state;

	if (first >= chunk->first && end <= old_end)
		return 0;
	if (first > chunk->first)
		first = chunk->first;
	if (end < old_end)
		end = old_end;
	if (records(end - first, &record, &state))
		return -ENOMEM;
	at = chunk->first - first;
	memcpy(record + at, chunk->record, chunk->n * sizeof(*record));
	memcpy(state + at, chunk->state, chunk->n);
	free(chunk->record);
	chunks->metadata += (uint64_t)(end - first - chunk->n) * RECORD_BYTES;
	chunk->record = record;
	chunk->state = state;
	chunk->first = (uint16_t)first;
	chunk->n = (uint16_t)(end - first);
	return 0;
}

void pm_chunk_destroy(struct pm_chunks *chunks, struct pm_chunk *chunk)
{
	chunks->table[chunk->id] = NULL;
	if (chunk->id < chunks->free)
		chunks->free = chunk->id;
	chunks->metadata -= sizeof(*chunk) + (uint64_t)chunk->n * RECORD_BYTES;
	free(chunk->record);
	free(chunk);
}
