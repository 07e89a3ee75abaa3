/* SPDX-License-Identifier: MIT */
/*
 * Page records: nine bytes a page, kept for those 2 MiB-aligned stretches ("chunks") of a process that have pages.
 *
 * A page's number, 31 bits, is its chunk's number << 9 | its position in the chunk.
 */
#ifndef PM_CHUNK_H
#define PM_CHUNK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "page.h"
#include "pool.h"

enum {
	PM_CHUNK_SHIFT = 9,
	PM_CHUNK_PAGES = 1 << PM_CHUNK_SHIFT,
	PM_CHUNKS_MAX = 1 << 22,
};
static const uint64_t PM_CHUNK_BYTES = (uint64_t)PM_CHUNK_PAGES * PM_PAGE_SIZE;

enum pm_page_state {
	PM_NONE = 0,     /* no page, or none that we know */
	PM_LOOKED = 1,   /* looked at once; volatile */
	PM_UNSHARED = 2, /* in the index (link: its chain), or PM_LINK_ALONE: not to be found */
	PM_PENDING = 3,  /* to be asked of the agent; link: the slot, or PM_LINK_ZERO */
	PM_ASKED = 4,    /* asked; link: as above; PM_REF_NONE where a foreign pool's page is to be unmerged */
	PM_MERGED = 5,   /* link: the slot */
	PM_ZEROED = 6,   /* dropped as all zero; sum: 1 until a pass has seen it so */
	PM_RECALLED = 7, /* to be asked back; link: as for PM_ASKED */
	PM_STATES = 8,
};

/* What a link can be besides a reference. */
#define PM_REF_SLOT 0x80000000u /* | slot number; else it is a page number */
#define PM_REF_NONE 0xffffffffu
#define PM_LINK_ALONE 0xfffffffeu /* PM_UNSHARED: its content was refused once, leave it until it changes */
#define PM_LINK_ZERO 0xfffffffdu
#define PM_LINK_DIFFERS 0xfffffffau /* PM_LOOKED: its sum is also another content's: take that of the whole page */
#define PM_LINK_LEFT 0xfffffffbu /* PM_LOOKED: known, and not merged for want of mappings */
#define PM_LINK_KNOWN 0xfffffffcu /* PM_LOOKED: its sum is that of its content as far as writes are tracked */

/* A sum's kind.  Of samples of a page: neither. */
#define PM_SUM_WHOLE 0x80000000u /* of the whole page: that of its samples is also another content's */
#define PM_SUM_CHECK 0xc0000000u /* of the whole page, only to see whether it changes; never in the index */

static inline bool pm_sum_is_whole(uint32_t sum)
{
	return (sum & PM_SUM_CHECK) == PM_SUM_WHOLE;
}

struct pm_mm;

struct pm_chunk {
	struct pm_mm *mm;
	uint64_t base;   /* address, 2 MiB-aligned */
	uint32_t id;
	uint32_t window; /* the first of its 512 slots, or PM_NO_SLOT */
	uint16_t first;  /* first page that has a record */
	uint16_t n;      /* pages that have records */
	uint16_t used;   /* pages not PM_NONE */
	uint16_t wanted; /* pages PM_PENDING or PM_RECALLED */
	uint16_t looked; /* pages PM_LOOKED */
	bool huge;       /* in a transparent huge page, when last looked at */
	bool plain;      /* no page needs more than its write tracking: as of the last look at all of them */
	bool takes;       /* none of what is to be merged is to be given */
	uint32_t waits;   /* all that is to be merged waits, for what request.c knows; 0: that is not known */
	uint32_t touched; /* the slice of scanning in which its pages were matched last */
	struct pm_record *record; /* [n] */
	uint8_t *state;  /* [n]: enum pm_page_state << 5 | visits (smart scan) */
};

struct pm_chunks { /* by number */
	struct pm_chunk **table;
	uint32_t count, cap;
	uint32_t free; /* lower numbers are in use */
	uint64_t metadata;
};

void pm_chunks_deinit(struct pm_chunks *chunks);
/* A chunk with records for the pages [first, first + n).  0 or -errno. */
int pm_chunk_create(struct pm_chunks *chunks, struct pm_mm *mm, uint64_t base, uint32_t first, uint32_t n,
		    struct pm_chunk **out);
/* Have records for at least [first, first + n). */
int pm_chunk_extend(struct pm_chunks *chunks, struct pm_chunk *chunk, uint32_t first, uint32_t n);
void pm_chunk_destroy(struct pm_chunks *chunks, struct pm_chunk *chunk);

static inline uint32_t pm_page_number(const struct pm_chunk *chunk, uint32_t i)
{
	return chunk->id << PM_CHUNK_SHIFT | (chunk->first + i);
}

static inline struct pm_chunk *pm_chunk_of(const struct pm_chunks *chunks, uint32_t page, uint32_t *i)
{
	struct pm_chunk *chunk = chunks->table[page >> PM_CHUNK_SHIFT];

	*i = (page & (PM_CHUNK_PAGES - 1)) - chunk->first;
	return chunk;
}

static inline uint64_t pm_chunk_address(const struct pm_chunk *chunk, uint32_t i)
{
	return chunk->base + ((uint64_t)(chunk->first + i) << PM_PAGE_SHIFT);
}

static inline unsigned int pm_page_state(const struct pm_chunk *chunk, uint32_t i)
{
	return chunk->state[i] >> 5;
}

#endif
