/* SPDX-License-Identifier: MIT */
/* Looks at pages one by one, /proc/PID/pagemap and /proc/kpageflags, until a slice is full. */
#include "slice.h"

#include "page.h"

#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

enum { ENTRIES = 512, FRAMES = 64 }; /* read at once */

/* Bits of an entry of pagemap, and flags of linux/kernel-page-flags.h. */
static const uint64_t PRESENT = 1ull << 63, FILE_OR_SHARED = 1ull << 61, FRAME = (1ull << 55) - 1;
static const uint64_t KSM = 1ull << 21, ZERO_PAGE = 1ull << 24;

struct flags {
	int fd;
	uint64_t first; /* frame, of what is read; UINT64_MAX: nothing yet */
	size_t count;
	uint64_t flags[FRAMES];
};

static size_t read_entries(int fd, uint64_t index, uint64_t *out, size_t count)
{
	ssize_t n = pread(fd, out, count * sizeof(*out), (off_t)(index * sizeof(*out)));

	return n > 0 ? (size_t)n / sizeof(*out) : 0;
}

/* Neighbours are often wanted next. */
static bool is_merged(struct flags *flags, uint64_t entry)
{
	uint64_t frame = entry & FRAME;

	if (entry & FILE_OR_SHARED)
		return false;
	if (flags->fd < 0 || !frame)
		return true;
	if (flags->first == UINT64_MAX || frame - flags->first >= FRAMES) {
		flags->first = frame / FRAMES * FRAMES;
		flags->count = read_entries(flags->fd, flags->first, flags->flags, FRAMES);
	}
	if (frame - flags->first >= flags->count)
		return true;
	return flags->flags[frame - flags->first] & (KSM | ZERO_PAGE);
}

/* Whether there is room for the page; then it is counted. */
static bool add(struct pm_slice *slice, const struct pm_slice *most, struct flags *flags, uint64_t entry)
{
	bool present = entry & PRESENT, merged = present && is_merged(flags, entry);

	if (slice->pages >= most->pages || (present && slice->present >= most->present) ||
	    (merged && slice->merged >= most->merged))
		return false;
	slice->pages++;
	slice->present += present;
	slice->merged += merged;
	return true;
}

uint64_t pm_slice_end(int pagemap, int kpageflags, uint64_t start, uint64_t end, const struct pm_slice *most,
		      struct pm_slice *slice)
{
	struct flags flags = {.fd = kpageflags, .first = UINT64_MAX};
	uint64_t entries[ENTRIES], at = start / PM_PAGE_SIZE, last = end / PM_PAGE_SIZE;

	*slice = (struct pm_slice){0};
	while (at < last) {
		size_t wanted = last - at < ENTRIES ? (size_t)(last - at) : ENTRIES;
		size_t got = read_entries(pagemap, at, entries, wanted);

		for (size_t i = 0; i < wanted; i++, at++)
			if (!add(slice, most, &flags, i < got ? entries[i] : 0))
				return at * PM_PAGE_SIZE;
	}
	return at * PM_PAGE_SIZE;
}
