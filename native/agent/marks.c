/* SPDX-License-Identifier: MIT */
#include "marks.h"

#include "link.h"
#include "ranges.h"

static struct pm_ranges marks, seen;
static bool all;

static void set_part(uint64_t start, uint64_t end, uint32_t kind)
{
	struct pm_range range = { start, end, kind, 0 };

	if (kind == PM_MARK_UNMERGEABLE && !all)
		pm_ranges_cut(&marks, start, end);
	else
		pm_ranges_put(&marks, start, end, kind == PM_MARK_UNSEALED ? PM_MARK_MERGEABLE : kind);
	pm_link_tell(PM_MARK, &range, 1);
}

/* What is excluded stays so, whatever is asked for it later. */
void pm_marks_set(uint64_t start, uint64_t end, uint32_t kind)
{
	pm_ranges_lock(&marks);
	while (start < end) {
		uint64_t from = end, to = end;

		if (kind != PM_MARK_EXCLUDED)
			pm_ranges_next(&marks, start, PM_MARK_EXCLUDED, &from, &to);
		if (start < from)
			set_part(start, from < end ? from : end, kind);
		start = to;
	}
	pm_ranges_unlock(&marks);
}

void pm_marks_gone(uint64_t start, uint64_t end)
{
	struct pm_range range = { start, end, 0, 0 };
	bool told;

	pm_ranges_lock(&seen);
	pm_ranges_cut(&seen, start, end);
	pm_ranges_unlock(&seen);
	pm_ranges_lock(&marks);
	told = pm_ranges_cut(&marks, start, end) || all;
	pm_ranges_unlock(&marks);
	if (told)
		pm_link_tell(PM_GONE, &range, 1);
}

void pm_marks_set_all(bool on)
{
	struct pm_range range = { 0, 0, on, 0 };

	pm_ranges_lock(&marks);
	all = on;
	if (!on)
		pm_ranges_keep(&marks, PM_MARK_EXCLUDED); /* prctl(PR_SET_MEMORY_MERGE, 0) clears what madvise marked, too */
	pm_ranges_unlock(&marks);
	pm_link_tell(PM_ALL, &range, 1);
}

bool pm_marks_all(void)
{
	return all;
}

bool pm_marks_any(void)
{
	return all || marks.count;
}

uint32_t pm_marks_kind(uint64_t addr)
{
	pm_ranges_lock(&marks);
	uint32_t kind = pm_ranges_kind(&marks, addr);
	pm_ranges_unlock(&marks);
	return kind;
}

bool pm_marks_wanted(uint64_t start, uint64_t end)
{
	pm_ranges_lock(&marks);
	bool wanted = !pm_ranges_touch(&marks, start, end, PM_MARK_EXCLUDED) &&
		      !pm_ranges_touch(&marks, start, end, PM_MARK_UNMERGEABLE) &&
		      (all || pm_ranges_cover(&marks, start, end, 0));
	pm_ranges_unlock(&marks);
	return wanted;
}

bool pm_marks_sealed(uint64_t start, uint64_t end)
{
	pm_ranges_lock(&marks);
	bool sealed = pm_ranges_cover(&marks, start, end, PM_MARK_SEALED);
	pm_ranges_unlock(&marks);
	return sealed;
}

void pm_marks_tell(void)
{
	enum { AT_ONCE = 64 };
	struct pm_range some[AT_ONCE];

	/* What changes meanwhile is told by itself; the lock is not held while the daemon makes us wait. */
	for (uint32_t at = 0, n = AT_ONCE; n == AT_ONCE; at += n) {
		pm_ranges_lock(&marks);
		for (n = 0; n < AT_ONCE && at + n < marks.count; n++)
			some[n] = marks.items[at + n];
		pm_ranges_unlock(&marks);
		if (n)
			pm_link_tell_waiting(PM_MARK, some, n);
	}
}

void pm_marks_saw(uint64_t start, uint64_t end)
{
	pm_ranges_lock(&seen);
	pm_ranges_put(&seen, start, end, 1);
	pm_ranges_unlock(&seen);
}

bool pm_marks_seen(uint64_t start, uint64_t end)
{
	pm_ranges_lock(&seen);
	bool cover = pm_ranges_cover(&seen, start, end, 1);
	pm_ranges_unlock(&seen);
	return cover;
}

bool pm_marks_own(uint64_t start, uint64_t end)
{
	return pm_ranges_own(&marks, start, end) || pm_ranges_own(&seen, start, end);
}

void pm_marks_lock(void)
{
	pm_ranges_lock(&marks);
	pm_ranges_lock(&seen);
}

void pm_marks_unlock(void)
{
	pm_ranges_unlock(&seen);
	pm_ranges_unlock(&marks);
}
