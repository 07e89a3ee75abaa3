/* SPDX-License-Identifier: MIT */
/*
 * mremap(2) of memory that has been merged: several mappings, though the program made one, and the kernel moves or resizes one at a time only.
 *
 * Each is moved by itself then, to where there is room for all, and the last one grows.  A mapping of the pool never does: it would show what comes next there.
 */
#include "calls.h"

#include <sys/mman.h>

enum { DONTUNMAP = 4, FIXED_NOREPLACE = 0x100000 };

static long raw(uint64_t from, uint64_t old, uint64_t new, int flags, uint64_t to)
{
	long at = syscall(SYS_mremap, from, old, new, flags, to);

	return at == -1 ? -errno : at;
}

/* Memory after a mapping, like it. */
static long add_after(const struct pm_vma *last, uint64_t at, uint64_t length)
{
	void *added = pm_mmap((void *)(uintptr_t)at, length, last->prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | FIXED_NOREPLACE, -1, 0);

	if (added == MAP_FAILED)
		return -errno;
	if ((uintptr_t)added == at)
		return 0;
	pm_munmap(added, length); /* a kernel before 4.17 takes it for a hint */
	return -ENOMEM;
}

/* Make the mapping that ends at `end` longer, where it is. */
static long grow_in_place(const struct pm_vma *last, uint64_t end, uint64_t more)
{
	long at;

	if (last->pool)
		return add_after(last, end, more);
	at = raw(last->start, end - last->start, end - last->start + more, 0, 0);
	return at < 0 ? at : 0;
}

/* The mapping at `at`, no further than to `end`; -EFAULT where there is none. */
static long part_at(uint64_t at, uint64_t end, struct pm_vma *part)
{
	if (pm_vma_find(at, part) || part->start > at)
		return -EFAULT;
	part->start = at;
	part->end = part->end < end ? part->end : end;
	return 0;
}

/* Move the mappings of [start, end) to `to`, where `room` is kept for them; all, or none. */
static long move_parts(uint64_t start, uint64_t end, uint64_t to, int flags)
{
	int how = MREMAP_MAYMOVE | MREMAP_FIXED | (flags & DONTUNMAP);
	struct pm_vma part;

	for (uint64_t at = start; at < end; at = part.end) {
		long error = part_at(at, end, &part);

		if (!error) {
			error = raw(part.start, part.end - part.start, part.end - part.start, how, to + (part.start - start));
			error = error < 0 ? error : 0;
		}
		if (error) {
			if (at > start && !(flags & DONTUNMAP))
				move_parts(to, to + (at - start), start, 0);
			return error;
		}
	}
	return 0;
}

static long by_parts(const struct pm_remap *remap)
{
	uint64_t start = remap->start, end = remap->end, old = end - start, new = remap->size;
	uint64_t common = old < new ? old : new;
	bool fixed = remap->flags & MREMAP_FIXED, stays = !fixed && !(remap->flags & DONTUNMAP);
	struct pm_vma last;
	void *room;
	long error = 0;

	for (uint64_t at = start; at < end && !error; at = last.end)
		error = part_at(at, end, &last); /* the last one in the end */
	if (error || (fixed && remap->target < end && remap->target + new > start))
		return error ? error : -EINVAL;
	if (new < old && pm_munmap((void *)(uintptr_t)(start + new), old - new))
		return -errno;
	if (stays && (new <= old || !grow_in_place(&last, end, new - old)))
		return (long)start;
	if (!(remap->flags & MREMAP_MAYMOVE))
		return -ENOMEM;
	room = pm_mmap((void *)(uintptr_t)remap->target, new, last.prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (fixed ? MAP_FIXED : 0), -1, 0);
	if (room == MAP_FAILED)
		return -errno;
	error = move_parts(start, start + common, (uintptr_t)room, remap->flags);
	if (!error && new > old && !last.pool) { /* with the properties of what it continues */
		uint64_t from = (uintptr_t)room + (last.start - start), length = last.end - last.start;

		pm_munmap((char *)room + old, new - old);
		error = raw(from, length, length + (new - old), 0, 0);
		if (error < 0) /* somebody was quicker, or there is a limit */
			error = add_after(&last, (uintptr_t)room + old, new - old);
		else
			error = 0;
	}
	if (error) {
		move_parts((uintptr_t)room, (uintptr_t)room + common, start, 0);
		pm_munmap(room, new);
		return error;
	}
	return (long)room;
}

/*
 * Linux 6.17 and later move several mappings in one call, and stop in the middle (EFAULT) at one that is registered with a userfaultfd, as what is tracked is and what has just become
 * anonymous is not: some are at their new place then, and the others at the old one.
 */
static bool is_one_mapping(uint64_t start, uint64_t end)
{
	struct pm_vma vma;

	return pm_vma_find(start, &vma) == 0 && vma.start <= start && vma.end >= end;
}

/* `argument` is a struct pm_remap. */
void pm_remap(void *argument)
{
	struct pm_remap *remap = argument;
	bool grows = remap->pool && remap->size > remap->end - remap->start;
	bool parts = grows || !is_one_mapping(remap->start, remap->end);
	long to = parts ? by_parts(remap) : raw(remap->start, remap->end - remap->start, remap->size, remap->flags, remap->target);

	if (to >= 0)
		pm_calls_note_merged((uint64_t)to, (uint64_t)to + remap->size);
	remap->result = to;
}
