/* SPDX-License-Identifier: MIT */
/*
 * The pool: segments (memfds) of slots, each with one page's content, and what is known of each slot.
 *
 * A slot's content is written once and never changed or punched out (docs/explanation/engine.md).  A slot's number is
 * global: segment << PM_SEGMENT_SHIFT | position.
 */
#ifndef PM_POOL_H
#define PM_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
	PM_SEGMENT_SHIFT = 14,
	PM_SEGMENT_PAGES = 1 << PM_SEGMENT_SHIFT,
	PM_WINDOW_PAGES = 512,
	PM_SEGMENTS_MAX = 1 << 16,
	PM_NODES_MAX = 64,
};

#define PM_NO_SLOT 0xffffffffu

enum pm_segment_state {
	PM_SEGMENT_LIVE = 1,
	PM_SEGMENT_RETIRED = 2, /* its contents are out of the index; only kept until its users are gone */
};

/* What is known of a page, or of a slot: side by side, as a walk along a chain of the index needs both. */
struct pm_record {
	uint32_t sum;
	uint32_t link; /* the next in the chain; of pages in other states something else (chunk.h) */
};

struct pm_segment {
	uint32_t id;
	uint8_t state;      /* enum pm_segment_state */
	bool sealed;        /* handed out: no pwrite any more, and nobody but us can write */
	uint64_t donor;     /* the mm that writes its pages to it (PM_GIVE); 0: we write */
	bool open;          /* the donor may write still: nobody else gets it */
	uint32_t giving;    /* requests of the donor's that are not answered */
	uint8_t *given;     /* while open: slots that the donor was asked to write, one bit each */
	uint32_t ngiven;
	uint8_t steady;     /* passes for which the number of dead slots has not changed */
	uint8_t idle;       /* passes without any user */
	int16_t node;       /* NUMA node, -1 for any */
	int fd;
	char *map;
	dev_t dev;
	ino_t ino;
	uint32_t windows;   /* windows given out */
	uint32_t written;   /* slots with content */
	uint32_t live;      /* slots with users */
	uint32_t dead_before; /* at the end of the last pass */
	struct pm_record record[PM_SEGMENT_PAGES];
	uint8_t users[PM_SEGMENT_PAGES]; /* low 7 bits the count (127: see `many`), high bit: one is confirmed */
	uint8_t filled[PM_SEGMENT_PAGES / 8];
	uint8_t indexed[PM_SEGMENT_PAGES / 8];
};

struct pm_many { /* a slot with 127 users or more */
	uint32_t slot;
	uint32_t users;
};

struct pm_pool {
	struct pm_segment **segments; /* by id; NULL where dropped */
	uint32_t nsegments, cap;
	uint32_t current[PM_NODES_MAX][2]; /* of each NUMA node, the segment being filled: windows in order, spills */
	struct pm_many *many;         /* open addressing */
	uint32_t nmany, many_cap;
	uint64_t shared;              /* slots with a confirmed user */
	uint64_t written_live;        /* pages written, in live segments */
	uint64_t written_retired;
	uint64_t metadata;            /* bytes */
	uint32_t changes;             /* segments that were closed or begun */
};

void pm_pool_init(struct pm_pool *pool);
void pm_pool_deinit(struct pm_pool *pool);

static inline struct pm_segment *pm_pool_segment(const struct pm_pool *pool, uint32_t slot)
{
	uint32_t id = slot >> PM_SEGMENT_SHIFT;

	return id < pool->nsegments ? pool->segments[id] : NULL;
}

static inline uint32_t pm_slot_position(uint32_t slot)
{
	return slot & (PM_SEGMENT_PAGES - 1);
}

/* 512 adjacent slots on a node (-1: any), next to the last window's where there is room.  0 or -errno. */
int pm_pool_window(struct pm_pool *pool, int node, bool spill, uint32_t *first);
/* The same in a segment that a process will write: *current (0), or a new one where that has no room (1). */
int pm_pool_given_window(struct pm_pool *pool, uint64_t donor, uint32_t *current, uint32_t *first);
/* A slot that its donor will write. */
void pm_pool_reserve(struct pm_pool *pool, uint32_t slot, uint32_t sum);
static inline bool pm_slot_is_given(const struct pm_segment *segment, uint32_t slot)
{
	return segment->given && segment->given[pm_slot_position(slot) / 8] >> (slot % 8) & 1;
}
void pm_slot_give(struct pm_segment *segment, uint32_t slot);
/* The donor is done, or gone: nobody can write any more.  0 or -errno. */
int pm_segment_close(struct pm_pool *pool, struct pm_segment *segment);

/* Give a slot its sum and content: `run` collects adjacent ones, pm_pool_flush writes them. */
struct pm_pool_run {
	uint32_t slot;
	uint32_t n;
	const char *content;
};
void pm_pool_fill(struct pm_pool *pool, struct pm_pool_run *run, uint32_t slot, uint32_t sum, const void *content);
int pm_pool_flush(struct pm_pool *pool, struct pm_pool_run *run);

bool pm_slot_filled(const struct pm_pool *pool, uint32_t slot);

uint32_t pm_slot_users(const struct pm_pool *pool, uint32_t slot);
/* One user more; -ENOMEM. */
int pm_slot_get(struct pm_pool *pool, uint32_t slot);
/* One less; true when it was the last. */
bool pm_slot_put(struct pm_pool *pool, uint32_t slot);
bool pm_slot_is_confirmed(const struct pm_segment *segment, uint32_t slot);
/* A user has really mapped it: it counts as shared until it has no users. */
void pm_slot_confirm(struct pm_pool *pool, uint32_t slot);

/* Seal a segment so that its descriptor can be handed out.  0 or -errno. */
int pm_segment_seal(struct pm_segment *segment);
/* The segment of a file, or NULL: unknown or dropped. */
struct pm_segment *pm_pool_find(const struct pm_pool *pool, dev_t dev, ino_t ino);
void pm_pool_retire(struct pm_pool *pool, struct pm_segment *segment);
void pm_pool_drop(struct pm_pool *pool, struct pm_segment *segment);

#endif
