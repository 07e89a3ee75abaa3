/* SPDX-License-Identifier: MIT */
/* Which memory of a process may be merged: what was marked, and what /proc/PID/maps says is there. */
#include "scanner.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum mark_is {
	IS_MERGEABLE = 1,
	IS_UNMERGEABLE = 2, /* left out though the process is merged as a whole */
	IS_SEALED = 4,
	IS_EXCLUDED = 8, /* until it is gone */
	IS_OWN = 16,     /* the agent's own memory */
};

enum { REFRESH_PASSES = 16 }; /* a change that nothing hinted at is noticed after this many passes at the latest */
enum { READING_REST = 20, MERGING_REST = 4 }; /* times what reading the maps takes, until they are read again: after that, and after a merge */
static const uint64_t READING_NS = 2000000; /* from which that counts */
static const uint64_t LINE_NS = 1000;       /* about what reading one takes */

static int grow(void **array, size_t *cap, size_t need, size_t item)
{
	size_t new = *cap ? *cap : 16;
	void *grown;

	if (need <= *cap)
		return 0;
	while (new < need)
		new *= 2;
	grown = realloc(*array, new * item);
	if (!grown)
		return -ENOMEM;
	*array = grown;
	*cap = new;
	return 0;
}

/* ---- marks: intervals that don't overlap, by address ---- */

/* Set and clear bits on [start, end); intervals that end up without any are dropped, equal neighbours joined. */
static int marks_apply(struct pm_mm *mm, uint64_t start, uint64_t end, uint32_t set, uint32_t clear)
{
	size_t n = 0, cap = mm->nmarks * 2 + 3;
	struct pm_interval *out;
	uint64_t at = start;

	if (start >= end)
		return 0;
	out = malloc(cap * sizeof(*out));
	if (!out)
		return -ENOMEM;
#define PUT(from, to, bits)                                                                        \
	do {                                                                                       \
		uint64_t from_ = (from), to_ = (to);                                               \
		uint32_t bits_ = (bits);                                                           \
		if (from_ < to_ && bits_) {                                                        \
			if (n && out[n - 1].end == from_ && out[n - 1].is == bits_)                \
				out[n - 1].end = to_;                                              \
			else                                                                       \
				out[n++] = (struct pm_interval){from_, to_, bits_};                    \
		}                                                                                  \
	} while (0)
	for (size_t i = 0; i < mm->nmarks; i++) {
		struct pm_interval m = mm->marks[i];
		uint64_t low = m.start > start ? m.start : start, high = m.end < end ? m.end : end;

		if (m.start >= end && at < end) {
			PUT(at, end, set);
			at = end;
		}
		if (low >= high) {
			PUT(m.start, m.end, m.is);
			continue;
		}
		PUT(m.start, low, m.is);
		PUT(at, low, set);
		PUT(low, high, (m.is & ~clear) | set);
		at = high;
		PUT(high, m.end, m.is);
		if (high < m.end)
			at = end;
	}
	PUT(at, end, set);
#undef PUT
	free(mm->marks);
	mm->marks = out;
	mm->nmarks = n;
	mm->marks_cap = cap;
	return 0;
}

int pm_mm_mark(struct pm_mm *mm, uint64_t start, uint64_t end, uint32_t kind)
{
	mm->stale = true;
	switch (kind) {
	case PM_MARK_MERGEABLE:
		return marks_apply(mm, start, end, IS_MERGEABLE, IS_UNMERGEABLE);
	case PM_MARK_UNMERGEABLE:
		return marks_apply(mm, start, end, IS_UNMERGEABLE, IS_MERGEABLE | IS_SEALED);
	case PM_MARK_SEALED:
		return marks_apply(mm, start, end, IS_MERGEABLE | IS_SEALED, IS_UNMERGEABLE);
	case PM_MARK_UNSEALED:
		return marks_apply(mm, start, end, 0, IS_SEALED);
	case PM_MARK_EXCLUDED:
		return marks_apply(mm, start, end, IS_EXCLUDED, 0);
	default:
		return -EINVAL;
	}
}

void pm_mm_set_all(struct pm_mm *mm, bool on)
{
	if (on == mm->all)
		return;
	mm->all = on;
	mm->stale = true;
	if (!on) /* as prctl(PR_SET_MEMORY_MERGE, 0) does, also what madvise had marked */
		marks_apply(mm, 0, UINT64_MAX - PM_PAGE_SIZE + 1, 0, IS_MERGEABLE | IS_UNMERGEABLE | IS_SEALED);
}

int pm_mm_exclude(struct pm_mm *mm, uint64_t start, uint64_t end)
{
	mm->stale = true;
	return marks_apply(mm, start, end, IS_OWN, 0);
}

void pm_mm_gone(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t start, uint64_t end, uint32_t how)
{
	mm->changed = true;
	if (how != PM_GONE_DISCARDED)
		marks_apply(mm, start, end, 0, (uint32_t)~IS_OWN);
	for (size_t c = pm_mm_chunk_at(mm, start); c < mm->nchunks && mm->chunks[c]->base < end; c++) {
		struct pm_chunk *chunk = mm->chunks[c];

		/* Pages that were dropped as zero leave no trace in the page tables; only this says that they are gone. */
		for (uint32_t i = 0; i < chunk->n; i++) {
			uint64_t address = pm_chunk_address(chunk, i);

			if (address >= start && address < end && pm_page_state(chunk, i) == PM_ZEROED)
				pm_page_detach(scanner, chunk, i, PM_NONE);
		}
	}
}

/* Marks of memory that is no longer mapped are void, as the kernel's are. */
static void marks_clip(struct pm_mm *mm, const struct pm_maps *maps)
{
	size_t n = 0, cap = mm->nmarks + maps->count, map = 0;
	struct pm_interval *out;

	if (!mm->nmarks)
		return;
	out = malloc(cap * sizeof(*out));
	if (!out)
		return;
	for (size_t i = 0; i < mm->nmarks; i++) {
		struct pm_interval m = mm->marks[i];

		if (m.is & IS_OWN) {
			out[n++] = m;
			continue;
		}
		while (map < maps->count && maps->maps[map].end <= m.start)
			map++;
		for (size_t k = map; k < maps->count && maps->maps[k].start < m.end; k++) {
			uint64_t low = m.start > maps->maps[k].start ? m.start : maps->maps[k].start;
			uint64_t high = m.end < maps->maps[k].end ? m.end : maps->maps[k].end;

			if (n && out[n - 1].end == low && out[n - 1].is == m.is)
				out[n - 1].end = high;
			else if (n < cap)
				out[n++] = (struct pm_interval){low, high, m.is};
		}
	}
	free(mm->marks);
	mm->marks = out;
	mm->nmarks = n;
	mm->marks_cap = cap;
}

/* ---- regions ---- */

static bool is_path(const struct pm_map *map, const char *path)
{
	return map->path_length == strlen(path) && memcmp(map->path, path, map->path_length) == 0;
}

static bool is_pool(const struct pm_map *map)
{
	return map->inode && (is_path(map, "/memfd:pagemerge (deleted)") || is_path(map, "/memfd:pagemerge"));
}

/* Private, anonymous, readable: what an agent can compare and replace. */
static bool is_anonymous(const struct pm_map *map)
{
	return !map->inode && (map->path_length == 0 || is_path(map, "[heap]") ||
			       (map->path_length > 6 && memcmp(map->path, "[anon:", 6) == 0));
}

static int add_region(struct pm_mm *mm, uint64_t start, uint64_t end, const struct pm_map *map, bool pool)
{
	struct pm_region *last = mm->nregions ? &mm->regions[mm->nregions - 1] : NULL;
	char name[PM_NAME_MAX] = "";
	bool named = !pool;

	if (named)
		memcpy(name, map->path, map->path_length < PM_NAME_MAX - 1 ? map->path_length : PM_NAME_MAX - 1);
	if (last && last->end == start && (pool || !last->tracked || strcmp(last->name, name) == 0)) {
		if (named && !last->tracked)
			memcpy(last->name, name, sizeof(name));
		last->tracked |= named; /* until registration: "has its name" */
		last->end = end;
		return 0;
	}
	if (grow((void **)&mm->regions, &mm->regions_cap, mm->nregions + 1, sizeof(*mm->regions)))
		return -ENOMEM;
	last = &mm->regions[mm->nregions++];
	*last = (struct pm_region){.start = start, .end = end, .tracked = named};
	memcpy(last->name, name, sizeof(name));
	return 0;
}

static int add_part(struct pm_scanner *scanner, struct pm_mm *mm, const struct pm_map *map)
{
	struct pm_segment *segment = pm_pool_find(&scanner->pool, makedev(map->major, map->minor), map->inode);
	uint64_t page = map->offset >> PM_PAGE_SHIFT, n = (map->end - map->start) >> PM_PAGE_SHIFT;
	uint32_t slot = PM_NO_SLOT, retired = PM_NO_SLOT;

	if (segment && segment->state == PM_SEGMENT_LIVE && page + n <= PM_SEGMENT_PAGES)
		slot = segment->id << PM_SEGMENT_SHIFT | (uint32_t)page;
	else
		mm->foreign = true;
	if (segment && slot == PM_NO_SLOT)
		retired = segment->id;
	if (grow((void **)&mm->parts, &mm->parts_cap, mm->nparts + 1, sizeof(*mm->parts)))
		return -ENOMEM;
	mm->parts[mm->nparts++] = (struct pm_part){map->start, map->end, slot, retired};
	return 0;
}

static int add_map(struct pm_scanner *scanner, struct pm_mm *mm, const struct pm_map *map, size_t *mark)
{
	uint64_t at = map->start;
	bool pool = is_pool(map);
	size_t before = mm->nregions;
	int err = 0;

	if (map->perms[0] != 'r' || map->perms[3] != 'p' || (!pool && !is_anonymous(map)))
		return 0;
	while (*mark < mm->nmarks && mm->marks[*mark].end <= map->start)
		++*mark;
	for (size_t m = *mark; at < map->end && !err;) {
		const struct pm_interval *here = m < mm->nmarks && mm->marks[m].start < map->end ? &mm->marks[m] : NULL;
		uint64_t end;
		bool merge;

		if (here && here->start <= at) {
			end = here->end < map->end ? here->end : map->end;
			merge = !(here->is & (IS_EXCLUDED | IS_OWN)) &&
				(here->is & IS_MERGEABLE || (mm->all && !(here->is & IS_UNMERGEABLE)));
			m++;
		} else {
			end = here ? here->start : map->end;
			merge = mm->all;
		}
		if (merge)
			err = add_region(mm, at, end, map, pool);
		at = end;
	}
	if (!err && pool && (mm->nregions > before || (mm->nregions && mm->regions[mm->nregions - 1].end > map->start)))
		err = add_part(scanner, mm, map);
	return err;
}

size_t pm_mm_part_at(const struct pm_mm *mm, uint64_t address)
{
	size_t low = 0, high = mm->nparts;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (mm->parts[mid].end <= address)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

const struct pm_part *pm_mm_part(const struct pm_mm *mm, uint64_t address)
{
	size_t at = pm_mm_part_at(mm, address);

	return at < mm->nparts && mm->parts[at].start <= address ? &mm->parts[at] : NULL;
}

/* Records outside of the regions are dropped, and merged pages that are not mapped from their slot any more. */
static void check_records(struct pm_scanner *scanner, struct pm_mm *mm)
{
	size_t r = 0, p = 0;

	for (size_t c = 0; c < mm->nchunks; c++) {
		struct pm_chunk *chunk = mm->chunks[c];

		for (uint32_t i = 0; i < chunk->n; i++) {
			unsigned int state = pm_page_state(chunk, i);
			uint64_t address;

			if (state == PM_NONE || state == PM_ASKED)
				continue;
			address = pm_chunk_address(chunk, i);
			while (r < mm->nregions && mm->regions[r].end <= address)
				r++;
			if (r == mm->nregions || mm->regions[r].start > address) {
				pm_page_detach(scanner, chunk, i, PM_NONE);
				continue;
			}
			if (state != PM_MERGED)
				continue;
			while (p < mm->nparts && mm->parts[p].end <= address)
				p++;
			if (p == mm->nparts || mm->parts[p].start > address || mm->parts[p].slot == PM_NO_SLOT ||
			    mm->parts[p].slot + ((address - mm->parts[p].start) >> PM_PAGE_SHIFT) != chunk->record[i].link)
				pm_page_detach(scanner, chunk, i, PM_NONE);
		}
	}
}

static void track_regions(struct pm_mm *mm)
{
	for (size_t r = 0; r < mm->nregions; r++) {
		struct pm_region *region = &mm->regions[r];

		region->tracked = mm->uffd >= 0 && mm->track.can_scan &&
				  pm_track_register(mm->uffd, region->start, region->end) == 0;
	}
}

/* Pages of address space, from /proc/PID/statm; 0 where it can't be read. */
static uint64_t read_size(const struct pm_mm *mm)
{
	char text[64];
	ssize_t n = mm->statm_fd < 0 ? -1 : pread(mm->statm_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return strtoull(text, NULL, 10);
}

/* However much goes on, they are read after twice the longer rest. */
static void rest(struct pm_mm *mm, uint64_t took, uint64_t times)
{
	uint64_t until = pm_now_ns() + took * times, most = mm->read_at + took * READING_REST * 2;

	if (took >= READING_NS && until > mm->reading_due)
		mm->reading_due = until < most ? until : most;
}

void pm_mm_put_off(struct pm_mm *mm)
{
	rest(mm, mm->vmas * LINE_NS, MERGING_REST);
}

int pm_mm_refresh(struct pm_scanner *scanner, struct pm_mm *mm)
{
	uint64_t size = read_size(mm), began = pm_now_ns();
	size_t mark = 0;
	int err;

	/*
	 * Reading ten thousand lines takes 10 ms, and a process that has so many mappings may change some in each pass.  What is looked at meanwhile by an old list is looked at
	 * in vain, or later.
	 */
	mm->changed = mm->changed || size != mm->statm || !size || ++mm->unread >= REFRESH_PASSES;
	if (!mm->stale && (!mm->changed || began < mm->reading_due))
		return 0;
	err = pm_maps_read(mm->maps_fd, &scanner->maps);
	if (err)
		return err;
	marks_clip(mm, &scanner->maps);
	mm->nregions = mm->nparts = 0;
	mm->foreign = false;
	mm->vmas = scanner->maps.count;
	for (size_t i = 0; i < scanner->maps.count; i++) {
		err = add_map(scanner, mm, &scanner->maps.maps[i], &mark);
		if (err)
			return err;
	}
	mm->stale = mm->changed = false;
	mm->whole = true;
	mm->unread = 0;
	mm->statm = size;
	check_records(scanner, mm);
	track_regions(mm);
	mm->read_at = pm_now_ns();
	rest(mm, mm->vmas * LINE_NS, READING_REST); /* not by the clock: it may have been interrupted */
	return 0;
}
