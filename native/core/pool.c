/* SPDX-License-Identifier: MIT */
#include "pool.h"

#include "page.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Of a window: a sum, a link, a count and two bits for each slot; of a segment: the rest. */
enum { WINDOW_RECORDS = PM_WINDOW_PAGES * 9 + PM_WINDOW_PAGES / 4, SEGMENT_HEAD = PM_PAGE_SIZE };
enum { USERS_MANY = 127, CONFIRMED = 128, MPOL_PREFERRED_MODE = 1 };
static const size_t SEGMENT_BYTES = (size_t)PM_SEGMENT_PAGES * PM_PAGE_SIZE;
_Static_assert((size_t)PM_SEGMENT_PAGES * PM_PAGE_SIZE == PM_SEGMENT_BYTES, "one size");

static bool bit(const uint8_t *bits, uint32_t i)
{
	return bits[i / 8] >> (i % 8) & 1;
}

static void set_bit(uint8_t *bits, uint32_t i)
{
	bits[i / 8] |= (uint8_t)(1u << (i % 8));
}

void pm_pool_init(struct pm_pool *pool)
{
	memset(pool, 0, sizeof(*pool));
	memset(pool->current, 0xff, sizeof(pool->current)); /* PM_NO_SLOT */
}

void pm_pool_deinit(struct pm_pool *pool)
{
	for (uint32_t i = 0; i < pool->nsegments; i++)
		if (pool->segments[i])
			pm_pool_drop(pool, pool->segments[i]);
	free(pool->segments);
	free(pool->many);
	memset(pool, 0, sizeof(*pool));
}

/* ---- slots with many users ---- */

static struct pm_many *many_find(const struct pm_pool *pool, uint32_t slot)
{
	uint32_t mask = pool->many_cap - 1;

	for (uint32_t at = slot * 2654435761u & mask; pool->many_cap; at = (at + 1) & mask) {
		if (pool->many[at].slot == slot)
			return &pool->many[at];
		if (pool->many[at].slot == PM_NO_SLOT)
			break;
	}
	return NULL;
}

static int many_add(struct pm_pool *pool, uint32_t slot, uint32_t users)
{
	uint32_t mask, at;

	if ((pool->nmany + 1) * 2 > pool->many_cap) {
		uint32_t cap = pool->many_cap ? pool->many_cap * 2 : 64;
		struct pm_many *old = pool->many, *new = malloc(cap * sizeof(*new));

		if (!new)
			return -ENOMEM;
		for (uint32_t i = 0; i < cap; i++)
			new[i].slot = PM_NO_SLOT;
		for (uint32_t i = 0; i < pool->many_cap; i++) {
			if (old[i].slot == PM_NO_SLOT)
				continue;
			for (at = old[i].slot * 2654435761u & (cap - 1); new[at].slot != PM_NO_SLOT;)
				at = (at + 1) & (cap - 1);
			new[at] = old[i];
		}
		pool->metadata += (cap - pool->many_cap) * sizeof(*new);
		pool->many = new;
		pool->many_cap = cap;
		free(old);
	}
	mask = pool->many_cap - 1;
	for (at = slot * 2654435761u & mask; pool->many[at].slot != PM_NO_SLOT;)
		at = (at + 1) & mask;
	pool->many[at] = (struct pm_many){slot, users};
	pool->nmany++;
	return 0;
}

static void many_remove(struct pm_pool *pool, struct pm_many *entry)
{
	uint32_t mask = pool->many_cap - 1, hole = (uint32_t)(entry - pool->many);

	for (uint32_t at = (hole + 1) & mask; pool->many[at].slot != PM_NO_SLOT; at = (at + 1) & mask) {
		uint32_t home = pool->many[at].slot * 2654435761u & mask;

		if (((at - home) & mask) >= ((at - hole) & mask)) {
			pool->many[hole] = pool->many[at];
			hole = at;
		}
	}
	pool->many[hole].slot = PM_NO_SLOT;
	pool->nmany--;
}

uint32_t pm_slot_users(const struct pm_pool *pool, uint32_t slot)
{
	const struct pm_segment *segment = pm_pool_segment(pool, slot);
	uint32_t users = segment->users[pm_slot_position(slot)] & USERS_MANY;
	const struct pm_many *many;

	if (users < USERS_MANY)
		return users;
	many = many_find(pool, slot);
	return many ? many->users : users;
}

int pm_slot_get(struct pm_pool *pool, uint32_t slot)
{
	struct pm_segment *segment = pm_pool_segment(pool, slot);
	uint8_t *users = &segment->users[pm_slot_position(slot)];
	uint8_t n = *users & USERS_MANY;
	struct pm_many *many;
	int err;

	if (n == USERS_MANY) {
		many = many_find(pool, slot);
		if (many)
			many->users++;
		return many ? 0 : -ENOMEM;
	}
	if (n == USERS_MANY - 1) {
		err = many_add(pool, slot, USERS_MANY);
		if (err)
			return err;
	}
	if (n == 0)
		segment->live++;
	++*users;
	return 0;
}

bool pm_slot_put(struct pm_pool *pool, uint32_t slot)
{
	struct pm_segment *segment = pm_pool_segment(pool, slot);
	uint8_t *users = &segment->users[pm_slot_position(slot)];
	struct pm_many *many;

	if ((*users & USERS_MANY) == USERS_MANY) {
		many = many_find(pool, slot);
		if (many && --many->users >= USERS_MANY)
			return false;
		if (many)
			many_remove(pool, many);
	}
	--*users;
	if (*users & USERS_MANY)
		return false;
	segment->live--;
	if (*users & CONFIRMED)
		pool->shared--;
	*users = 0;
	return true;
}

bool pm_slot_is_confirmed(const struct pm_segment *segment, uint32_t slot)
{
	return segment->users[pm_slot_position(slot)] & CONFIRMED;
}

void pm_slot_confirm(struct pm_pool *pool, uint32_t slot)
{
	uint8_t *users = &pm_pool_segment(pool, slot)->users[pm_slot_position(slot)];

	if (!(*users & CONFIRMED)) {
		*users |= CONFIRMED;
		pool->shared++;
	}
}

bool pm_slot_filled(const struct pm_pool *pool, uint32_t slot)
{
	const struct pm_segment *segment = pm_pool_segment(pool, slot);

	return segment && bit(segment->filled, pm_slot_position(slot));
}

/* ---- segments ---- */

static void prefer_node(void *map, int node)
{
	unsigned long mask[16] = {0};

	if (node < 0)
		return;
	mask[node / 64] = 1ul << (node % 64);
	/* Only a preference: where it can't be had, the content is still right. */
	syscall(SYS_mbind, map, SEGMENT_BYTES, MPOL_PREFERRED_MODE, mask, 1024ul, 0ul);
}

/* For a donor's, which nobody may have mapped so that it can be sealed, there is no mapping of ours. */
static int segment_create(struct pm_pool *pool, int node, uint64_t donor, struct pm_segment **out)
{
	struct pm_segment *segment;
	struct stat st;
	uint32_t id;
	int err;

	for (id = 0; id < pool->nsegments && pool->segments[id]; id++)
		;
	if (id == PM_SEGMENTS_MAX)
		return -ENOSPC;
	if (id == pool->cap) {
		uint32_t cap = pool->cap ? pool->cap * 2 : 16;
		struct pm_segment **grown = realloc(pool->segments, cap * sizeof(struct pm_segment *));

		if (!grown)
			return -ENOMEM;
		pool->metadata += (cap - pool->cap) * sizeof(struct pm_segment *);
		pool->segments = grown;
		pool->cap = cap;
	}
	/* Not from the heap: of its tables only what windows that are handed out need takes memory. */
	segment = mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (segment == MAP_FAILED)
		return -ENOMEM;
	segment->fd = memfd_create("pagemerge", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (segment->fd < 0) {
		err = -errno;
		munmap(segment, sizeof(*segment));
		return err;
	}
	if (ftruncate(segment->fd, (off_t)SEGMENT_BYTES) < 0 || fstat(segment->fd, &st) < 0) {
		err = -errno;
		goto fail;
	}
	if (donor) {
		segment->given = calloc(PM_SEGMENT_PAGES / 8, 1);
		if (!segment->given || fcntl(segment->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
			err = segment->given ? -errno : -ENOMEM;
			goto fail;
		}
	} else {
		segment->map = mmap(NULL, SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd, 0);
		if (segment->map == MAP_FAILED) {
			err = -errno;
			goto fail;
		}
		prefer_node(segment->map, node);
	}
	segment->donor = donor;
	segment->open = donor != 0;
	segment->id = id;
	segment->state = PM_SEGMENT_LIVE;
	segment->node = (int16_t)node;
	segment->dev = st.st_dev;
	segment->ino = st.st_ino;
	pool->segments[id] = segment;
	if (id == pool->nsegments)
		pool->nsegments++;
	pool->metadata += SEGMENT_HEAD;
	*out = segment;
	return 0;
fail:
	close(segment->fd);
	free(segment->given);
	munmap(segment, sizeof(*segment));
	return err;
}

int pm_pool_window(struct pm_pool *pool, int node, bool spill, uint32_t *first)
{
	uint32_t *current = &pool->current[node < 0 ? 0 : node % PM_NODES_MAX][spill];
	struct pm_segment *segment = *current == PM_NO_SLOT ? NULL : pool->segments[*current];
	int err;

	if (!segment || segment->state != PM_SEGMENT_LIVE || segment->node != node ||
	    segment->windows == PM_SEGMENT_PAGES / PM_WINDOW_PAGES) {
		err = segment_create(pool, node, 0, &segment);
		if (err)
			return err;
		*current = segment->id;
	}
	*first = segment->id << PM_SEGMENT_SHIFT | segment->windows++ * PM_WINDOW_PAGES;
	pool->metadata += WINDOW_RECORDS;
	if (segment->windows == PM_SEGMENT_PAGES / PM_WINDOW_PAGES)
		pool->changes++;
	return 0;
}

int pm_pool_given_window(struct pm_pool *pool, uint64_t donor, uint32_t *current, uint32_t *first)
{
	struct pm_segment *segment = *current < pool->nsegments ? pool->segments[*current] : NULL;
	int err, created = 0;

	if (!segment || !segment->open || segment->donor != donor || segment->windows == PM_SEGMENT_PAGES / PM_WINDOW_PAGES) {
		err = segment_create(pool, -1, donor, &segment);
		if (err)
			return err;
		*current = segment->id;
		created = 1;
	}
	*first = segment->id << PM_SEGMENT_SHIFT | segment->windows++ * PM_WINDOW_PAGES;
	pool->metadata += WINDOW_RECORDS;
	return created;
}

void pm_pool_reserve(struct pm_pool *pool, uint32_t slot, uint32_t sum)
{
	struct pm_segment *segment = pm_pool_segment(pool, slot);
	uint32_t at = pm_slot_position(slot);

	segment->record[at].sum = sum;
	set_bit(segment->filled, at);
	segment->written++;
	pool->written_live++;
}

void pm_slot_give(struct pm_segment *segment, uint32_t slot)
{
	set_bit(segment->given, pm_slot_position(slot));
	segment->ngiven++;
}

/*
 * Before Linux 6.7 a file that is sealed against writing can't be mapped shared by a descriptor that is open for writing, not even to be read.  And nobody needs
 * more than to read it from now on.
 */
static void reopen_read_only(struct pm_segment *segment)
{
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", segment->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	dup3(fd, segment->fd, O_CLOEXEC); /* under the same number: a request that could not be sent yet may name it */
	close(fd);
}

int pm_segment_close(struct pm_pool *pool, struct pm_segment *segment)
{
	segment->open = false;
	pool->changes++;
	free(segment->given);
	segment->given = NULL;
	if (fcntl(segment->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return -errno;
	segment->sealed = true;
	reopen_read_only(segment);
	return 0;
}

void pm_pool_fill(struct pm_pool *pool, struct pm_pool_run *run, uint32_t slot, uint32_t sum, const void *content)
{
	uint32_t at = pm_slot_position(slot);

	if (run->n && (slot != run->slot + run->n || at == 0 ||
		       (const char *)content != run->content + (size_t)run->n * PM_PAGE_SIZE))
		pm_pool_flush(pool, run);
	if (!run->n)
		*run = (struct pm_pool_run){slot, 0, content};
	run->n++;
	pm_pool_reserve(pool, slot, sum);
}

int pm_pool_flush(struct pm_pool *pool, struct pm_pool_run *run)
{
	size_t done = 0, bytes = (size_t)run->n * PM_PAGE_SIZE;
	struct pm_segment *segment;
	off_t at;

	if (!run->n)
		return 0;
	segment = pm_pool_segment(pool, run->slot);
	at = (off_t)pm_slot_position(run->slot) * PM_PAGE_SIZE;
	run->n = 0;
	if (segment->donor) /* not ours to write, and without a mapping of ours */
		return -EPERM;
	if (segment->sealed) { /* slots never used before, by the mapping made before the seal */
		memcpy(segment->map + at, run->content, bytes);
		return 0;
	}
	while (done < bytes) {
		ssize_t n = pwrite(segment->fd, run->content + done, bytes - done, at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		/* A slot without its content is no danger: every agent compares, finds a difference and leaves it. */
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

int pm_segment_seal(struct pm_segment *segment)
{
	if (segment->sealed)
		return 0;
	if (fcntl(segment->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	segment->sealed = true;
	return 0;
}

struct pm_segment *pm_pool_find(const struct pm_pool *pool, dev_t dev, ino_t ino)
{
	for (uint32_t i = 0; i < pool->nsegments; i++) {
		struct pm_segment *segment = pool->segments[i];

		if (segment && segment->ino == ino && segment->dev == dev)
			return segment;
	}
	return NULL;
}

void pm_pool_retire(struct pm_pool *pool, struct pm_segment *segment)
{
	if (segment->state == PM_SEGMENT_RETIRED)
		return;
	segment->state = PM_SEGMENT_RETIRED;
	pool->written_live -= segment->written;
	pool->written_retired += segment->written;
}

void pm_pool_drop(struct pm_pool *pool, struct pm_segment *segment)
{
	if (segment->state == PM_SEGMENT_RETIRED)
		pool->written_retired -= segment->written;
	else
		pool->written_live -= segment->written;
	for (int node = 0; node < PM_NODES_MAX; node++)
		for (int spill = 0; spill < 2; spill++)
			if (pool->current[node][spill] == segment->id)
				pool->current[node][spill] = PM_NO_SLOT;
	pool->segments[segment->id] = NULL;
	pool->metadata -= SEGMENT_HEAD + segment->windows * WINDOW_RECORDS;
	if (segment->map)
		munmap(segment->map, SEGMENT_BYTES);
	close(segment->fd);
	free(segment->given);
	munmap(segment, sizeof(*segment));
}
