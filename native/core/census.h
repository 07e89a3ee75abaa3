/* SPDX-License-Identifier: MIT */
/*
 * The census: what the present anonymous pages of processes hold, by hash, and what merging them would give.
 *
 * It only reads: pagemap says what is present, so that no page is faulted in and no swap is touched.  It holds 16 bytes
 * a page at most: hash and position (12) while reading, an index (4) while sorting; afterwards the hash gives way to
 * the number of the page's group.
 *
 * Order of calls: create, add spaces and regions, read, [look_again], group, then runs and select; destroy.  The
 * functions are not to be called from two threads at once, except pm_census_progress and pm_census_cancel.
 */
#ifndef PM_CENSUS_H
#define PM_CENSUS_H

#include <stddef.h>
#include <stdint.h>

struct pm_census;

enum pm_census_state {
	PM_SPACE_READ = 0,
	PM_SPACE_GONE = 1,	/* ended or replaced its memory (exec) while being read: its pages are left out */
	PM_SPACE_REFUSED = 2,	/* no permission to read its memory */
	PM_SPACE_FAILED = 3,	/* another error */
};

struct pm_census_space_info {
	uint32_t state; /* enum pm_census_state */
	int32_t error;	/* errno of what failed, 0 if nothing */
};

/* Pages; all of them exact, also when sampling, except where "sampled" is said. */
struct pm_census_region_info {
	uint64_t present;  /* eligible pages that were read */
	uint64_t zero;	   /* of these all zero */
	uint64_t zero_huge; /* of these in a huge mapping */
	uint64_t huge;	   /* of these part of a huge mapping */
	uint64_t lost;	   /* gone between pagemap and reading */
	uint64_t held;	   /* records kept (sampled) */
	uint64_t volatile_; /* sampled: changed between the two looks */
	uint64_t merging;  /* sampled: members of a group that would merge */
	double saved;	   /* sampled: this region's share of the frames that merging frees */
	/* from pm_census_runs() */
	uint64_t runs;	   /* mappings that the engine would make */
	uint64_t vmas;	   /* VMAs that the region would consist of */
	uint64_t split_huge; /* huge pages that would be split */
};

/* Of everything, where not said otherwise: where contents were sampled, those kept stand for all. */
struct pm_census_totals {
	uint64_t held;	    /* records */
	uint64_t volatile_, distinct; /* pages; contents */
	uint64_t shared, sharing, unshared, aliases; /* as ksmd would count: see pm_census_group() */
	uint64_t merging;		    /* mappings that would be merged */
	uint64_t frames_saved;		    /* physical pages that merging frees */
	uint64_t within, between;	    /* duplicates: in one space; in another one */
	uint64_t chains, dups;
	uint64_t already;		    /* pages that are KSM's now */
	/* sums of squares over the contents that were sampled, for variances; those that were counted have none */
	double shared2, sharing2, unshared2, frames_saved2, within2, between2, merging2, volatile2, distinct2;
	/* the same as the above for the content "all zero", which is never sampled but counted */
	uint64_t zero, zero_frames, zero_spaces, zero_huge;
};

struct pm_census_top {
	uint64_t hash;
	uint64_t pages, frames, spaces, regions;
	uint32_t region; /* where one of them is */
	uint64_t page;	 /* page number in the region's address space */
};

struct pm_census_pairs { /* a matrix of parties x parties; [p][p] are duplicates within p */
	const uint32_t *party; /* of each region */
	uint32_t parties;
	double *matrix; /* pages */
};

#define PM_CENSUS_RUN_BINS 16 /* runs of 1, 2-3, 4-7, ... pages */

struct pm_census_run_totals {
	uint64_t runs, pages, gap_pages;
	uint64_t bins[PM_CENSUS_RUN_BINS];
};

/* Keep a page when its hash falls into 1/sample of the hash space, moved by `salt`; threads 0: one a core. */
int pm_census_create(uint32_t sample, uint64_t salt, unsigned int threads, struct pm_census **out);
void pm_census_destroy(struct pm_census *c);

/*
 * A process; the descriptors stay the caller's.  mem_fd (-1: none) is /proc/PID/mem: without it, reading a page that
 * fork left shared gives the process a copy of its own.  Returns the number of the space, or -errno.
 */
int pm_census_add_process(struct pm_census *c, int pid, int pagemap_fd, int mem_fd);
/* A file, whose regions say where in it they lie. */
int pm_census_add_file(struct pm_census *c, int fd);
/* Regions of a space, in ascending order of space and address.  Returns its number, or -errno. */
int64_t pm_census_add_region(struct pm_census *c, int space, uint64_t start, uint64_t end, uint64_t offset);

/* Read and hash everything that was added. */
int pm_census_read(struct pm_census *c);
/* Read what is held once more; pages that differ become volatile. */
int pm_census_look_again(struct pm_census *c);
void pm_census_progress(const struct pm_census *c, uint64_t *done, uint64_t *total);
void pm_census_cancel(struct pm_census *c);

/*
 * Group by content, and count as ksmd does: a content merges when it is on two physical pages or more (a page that
 * fork left shared equals only itself).  `pairs` may be NULL; top receives the `ntop` contents with the most pages.
 */
int pm_census_group(struct pm_census *c, uint32_t max_page_sharing, struct pm_census_pairs *pairs, size_t npairs,
		    struct pm_census_top *top, size_t *ntop, struct pm_census_totals *totals);
/* What the engine would map; gaps of at most `gap_pages` do not end a run. */
int pm_census_runs(struct pm_census *c, uint32_t gap_pages, struct pm_census_run_totals *out);
/*
 * Drop regions, the least useful first: order receives all regions that hold a merging page, last dropped first, and
 * saving[i] the pages that the first i + 1 of them save together.  *n: in, room; out, how many.
 */
int pm_census_select(struct pm_census *c, uint32_t *order, double *saving, size_t *n);

size_t pm_census_regions(const struct pm_census *c);
void pm_census_region(const struct pm_census *c, size_t region, struct pm_census_region_info *out);
size_t pm_census_spaces(const struct pm_census *c);
void pm_census_space(const struct pm_census *c, size_t space, struct pm_census_space_info *out);
uint64_t pm_census_bytes(const struct pm_census *c); /* memory held at the peak */
int pm_census_frames_known(const struct pm_census *c);
int pm_census_huge_known(const struct pm_census *c); /* PAGEMAP_SCAN, Linux 6.7, tells which pages are huge */

#endif
