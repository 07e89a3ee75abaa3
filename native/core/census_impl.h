/* SPDX-License-Identifier: MIT */
/* What the files of the census share; nobody else includes it. */
#ifndef PM_CENSUS_IMPL_H
#define PM_CENSUS_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "census.h"
#include "sys.h"

#define PM_FRAMES_MAX (1ull << 32) /* 16 TiB of memory in a bitmap of 512 MiB, of which only the touched part exists */

/*
 * A record's place: the page's number from the segment's base, below the flags.  With 12 bytes a record and 4 for the
 * sorted index there is no room for more.
 */
#define PM_POS_BITS 25
#define PM_POS_MASK ((1u << PM_POS_BITS) - 1)
enum pm_record_flag {
	PM_REC_ALIAS = 1u << 25,    /* not the first mapping of its frame (frames known), or not exclusive (unknown) */
	PM_REC_HUGE = 1u << 26,	    /* part of a huge mapping */
	PM_REC_KSM = 1u << 27,	    /* merged already */
	PM_REC_ZERO = 1u << 28,
	PM_REC_VOLATILE = 1u << 29,
	PM_REC_MERGED = 1u << 30,   /* would be merged; set by grouping */
};
#define PM_REC_HEAVY (1u << 31) /* ... sampling: of a content that is counted, see census_heavy.c; no int holds it */

struct pm_space {
	int pid; /* 0: a file */
	int fd;	 /* pagemap, or the file */
	int mem_fd;
	_Atomic int state;
	_Atomic int error;
};

struct pm_region {
	uint64_t start, end; /* pages */
	uint64_t offset;     /* bytes in the file */
	uint32_t space;
	struct pm_census_region_info info;
};

struct pm_segment { /* records that follow each other: one window's */
	uint64_t base; /* page number of position 0 */
	uint64_t first;
	uint32_t count;
	uint32_t region;
};

struct pm_window {
	uint64_t start; /* page */
	uint32_t pages;
	uint32_t region;
};

struct pm_heavy { /* a slot of an open hash table; hits 0: free */
	uint64_t hash;
	uint32_t hits;	    /* in the pilot */
	uint32_t number;
	uint64_t volatile_; /* records of it */
	uint64_t frames;    /* of pages that may be shared by fork, told by their addresses (no frame numbers) */
	bool merges;
};

struct pm_census {
	uint32_t sample, threshold;
	uint64_t salt;
	unsigned int threads;
	_Atomic bool frames_known, scan_works;
	bool ksm_active;
	int kpageflags_fd;
	uint64_t zero_hash;
	_Atomic uint64_t *frames; /* a bit a physical page: seen */
	size_t frames_bytes;

	struct pm_space *spaces;
	size_t nspaces, spaces_room;
	struct pm_region *regions;
	size_t nregions, regions_room;
	struct pm_window *windows;
	size_t nwindows, windows_room;
	struct pm_segment *segments;
	size_t nsegments, segments_room;

	uint32_t pilot_threshold;
	uint64_t *pilot; /* hashes met */
	size_t pilot_n, pilot_room;
	struct pm_heavy *heavy;
	size_t heavies, heavy_mask;
	_Atomic uint32_t *heavy_cells; /* pages, frames; by heavy content and space */

	uint64_t *hash; /* after grouping: uint32_t group numbers, see pm_group_of() */
	uint32_t *pos;
	size_t held, room;
	bool grouped;
	uint32_t ngroups;
	uint64_t peak_bytes;

	pthread_mutex_t lock;
	_Atomic uint64_t next, done, total, zero_frames;
	_Atomic bool cancelled;
	_Atomic int error;
};

static inline bool pm_space_usable(const struct pm_census *c, uint32_t space)
{
	return atomic_load_explicit(&c->spaces[space].state, memory_order_relaxed) == PM_SPACE_READ;
}

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FILE (1ull << 61)
#define PAGEMAP_EXCLUSIVE (1ull << 56)

enum {
	PM_CHUNK = 128,		/* pages a call: 512 KiB, which stays in the second-level cache */
	PM_WINDOW_PAGES = 4096,	/* what a thread takes at a time */
	PM_WINDOW_SCALE_MAX = 16,	/* ... times this when sampling, so that segments stay few beside records */
	PM_THREADS_MAX = 64,
	PM_EXTENTS = 256,
	PM_PAGEMAP_BLOCK = 4096,	/* entries read at a time */
	PM_SCAN_PAGES = 1 << 14, /* a scan holds the target's mmap lock: 64 MiB take it some 100 us */
};

/* A thread's. */
struct pm_reader {
	struct pm_census *c;
	uint8_t *buffer;
	uint64_t page[PM_CHUNK];
	uint32_t flag[PM_CHUNK];
	bool common[PM_CHUNK]; /* mapped by others, too: see pm_census_fetch() */
	unsigned int n;	    /* pages in the chunk */
	uint64_t *hash; /* records of this window */
	uint32_t *pos;
	uint32_t count;
	bool pilot;
	struct pm_census_region_info info; /* of this window */
	uint64_t zero_frames;
	uint64_t map[PM_PAGEMAP_BLOCK];
	struct pm_page_region extent[PM_EXTENTS];
};


struct pm_reader *pm_reader_create(struct pm_census *c); /* NULL: no memory, which the census is told */
void pm_reader_destroy(struct pm_reader *rd);

/* What went wrong with a space; the run goes on without it. */
void pm_census_fail(struct pm_space *s, int error);
bool pm_census_still_there(const struct pm_space *s, uint64_t page);
int pm_census_plan_region(struct pm_census *c, uint32_t number, struct pm_reader *rd);
int pm_census_extents(struct pm_census *c, struct pm_space *s, uint64_t *from, uint64_t end, struct pm_page_region *out,
		 unsigned int room, uint64_t *map);
bool pm_census_next_data(const struct pm_space *s, const struct pm_region *r, uint64_t *at, uint64_t *end);
int pm_census_fetch(const struct pm_space *s, uint64_t file_base, uint8_t *buffer, const uint64_t *page, const bool *common,
	       unsigned int n, bool *got);

/* Sampling: a look at some pages, and what it found; census_heavy.c. */
int pm_pilot_begin(struct pm_census *c);
bool pm_pilot_picks(const struct pm_census *c, uint32_t space, uint64_t page);
void pm_pilot_put(struct pm_census *c, const uint64_t *hash, size_t n);
int pm_pilot_end(struct pm_census *c);
struct pm_heavy *pm_heavy_find(const struct pm_census *c, uint64_t hash); /* NULL: it is none */
bool pm_heavy_keeps(const struct pm_census *c, uint64_t page);
void pm_heavy_count(struct pm_census *c, const struct pm_heavy *h, uint32_t space, bool alias);
/* Pages that did not change, physical pages, and spaces that have some. */
void pm_heavy_sum(const struct pm_census *c, const struct pm_heavy *h, uint64_t *pages, uint64_t *frames, uint64_t *spaces);
void pm_heavy_deinit(struct pm_census *c);

struct pm_sorter {
	struct pm_census *c;
	uint32_t *order;
	size_t n;
	uint64_t half;	  /* sorted in two halves of the hash space, so that the index is half as long */
	uint64_t *bucket; /* where each begins; one more than there are */
	size_t buckets;
	unsigned int shift;
	uint32_t *hint; /* segment that holds record i << PM_HINT_SHIFT */
};

enum { PM_HINT_SHIFT = 10 };

/* Index of all records of this half that can be equal to another; deinit whatever comes of it. */
int pm_census_sort(struct pm_sorter *s);
void pm_sorter_deinit(struct pm_sorter *s);
const struct pm_segment *pm_segment_of(const struct pm_sorter *s, uint64_t record);

static inline bool pm_segment_counts(const struct pm_census *c, const struct pm_segment *g)
{
	return pm_space_usable(c, c->regions[g->region].space);
}

/* Run fn in c->threads threads of low priority. */
int pm_census_run_threads(struct pm_census *c, void *(*fn)(void *));
/* Room for one more in an array that doubles. */
int pm_census_make_room(void **array, size_t *room, size_t used, size_t size);
/* Memory that costs nothing until it is touched; NULL when there is none. */
void *pm_census_reserve(size_t bytes);

#endif
