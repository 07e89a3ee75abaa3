/* SPDX-License-Identifier: MIT */
/*
 * The scanner: what ksmd knows of processes, their pages, the index and the pool, and what it does in a pass.
 *
 *   region.c  which memory: marks, /proc/PID/maps, pool mappings
 *   walk.c    a pass over a process: which of its pages are looked at, in what steps
 *   look.c    what the kernel says of each page, and what follows from it
 *   read.c    reading pages
 *   match.c   finding equal ones
 *   give.c    pages that their own process hashes, and writes to the pool
 *   request.c what is asked of agents, and their answers
 *   sweep.c   the end of a pass: dead slots, retired segments
 *   scanner.c processes coming and going, knobs, counters
 *
 * One thread at a time; functions return 0 or -errno, -ESRCH when the process is gone.
 */
#ifndef PM_SCANNER_H
#define PM_SCANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "chunk.h"
#include "index.h"
#include "maps.h"
#include "pool.h"
#include "protocol.h"
#include "read.h"
#include "track.h"

enum {
	PM_SPANS = 1024,
	PM_ASK_PAGES = 8192,  /* in one request: some 10 ms of an agent's time */
	PM_NAME_MAX = 32,
	PM_EVENTS = 1 << 15,
	PM_DIFFERING = 64,
	PM_PROOFS = 1024, /* pages hashed whole, for what samples are worth; the top bits of their samples */
};

struct pm_interval {
	uint64_t start, end;
	uint32_t is; /* enum mark_is of region.c */
};

struct pm_region {
	uint64_t start, end;
	bool tracked;
	char name[PM_NAME_MAX]; /* as in maps: "", "[heap]", "[anon:...]" */
};

struct pm_part { /* a mapping of a pool */
	uint64_t start, end;
	uint32_t slot;    /* of its first page; PM_NO_SLOT: a retired segment or a pool that we don't know */
	uint32_t segment; /* the retired segment, or PM_NO_SLOT */
};

struct pm_request {
	uint64_t seq;
	uint32_t type; /* enum pm_message_type */
	uint32_t n;
	uint32_t pages;   /* PM_HASH */
	uint32_t segment; /* PM_GIVE: the one that is written */
	bool late;        /* PM_HASH: not waited for any more */
	struct pm_request *next;
	struct pm_run runs[];
};

struct pm_mm {
	struct pm_mm *next;
	uint64_t mm;     /* the caller's number */
	uint64_t family; /* the mm all whose forks it is one of */
	pid_t pid;
	int maps_fd, mem_fd, uffd, statm_fd, pagemap_fd;
	struct pm_track track;
	bool all;        /* PR_SET_MEMORY_MERGE */
	bool stale;      /* the regions have to be read again */
	bool changed;    /* so they have, but not before reading_due */
	uint64_t read_at, reading_due; /* ns */
	bool deaf;       /* no connection: can't be asked */
	bool gives;      /* its agent hashes and writes pages to the pool (PM_HELLO_GIVES) */
	bool at_work;    /* its agent said so, of the program: it would notice to be stopped */
	bool in_pass;    /* between begin_mm and the end of its scan */
	bool by_mem;     /* process_vm_readv is forbidden: read /proc/PID/mem */
	bool foreign;    /* maps a pool that is retired or unknown */
	bool whole;      /* this pass looks at everything, not only at what was written */
	uint32_t unread; /* passes since the maps were read */
	uint32_t partial; /* passes since one that was whole */
	uint64_t statm;  /* size, pages */
	struct pm_interval *marks;
	size_t nmarks, marks_cap;
	struct pm_region *regions;
	size_t nregions, regions_cap;
	struct pm_part *parts;
	size_t nparts, parts_cap;
	struct pm_chunk **chunks; /* by address */
	size_t nchunks, chunks_cap;
	uint64_t cursor;
	size_t region_at;  /* of the cursor */
	size_t wanted_at;  /* chunk from which requests are taken next */
	uint64_t wanted;   /* pages PM_PENDING or PM_RECALLED */
	uint64_t held_since; /* ns: requests wait for more of their kind */
	uint64_t vmas;     /* mappings it has, and will have after what has been asked */
	uint64_t left_for_vmas;
	uint64_t pages[PM_STATES];
	uint64_t zero_fresh;
	uint64_t breaks;
	uint64_t bytes; /* of its chunks' records */
	struct pm_request *asked;
	struct pm_request *to_hash, *collecting; /* to be asked; the last of them, which may still grow, or NULL */
	uint32_t hashing;  /* requests, asked or not */
	uint32_t giving;   /* the segment that it fills, or PM_NO_SLOT */
	uint32_t spill, spill_used; /* in such a segment: the window for pages whose own position is taken */
	uint64_t given;    /* pages that it was to write so far */
	uint64_t asked_to_give; /* of `given`, when there was nothing left that it had not been asked for */
	uint32_t unclosed; /* segments that it may write */
};

enum pm_event_kind {
	PM_EVENT_ZERO = 0,    /* ksm_merge_one_page */
	PM_EVENT_MERGE = 1,   /* ksm_merge_with_ksm_page */
	PM_EVENT_SLOT = 2,    /* ksm_remove_ksm_page */
	PM_EVENT_PAGE = 3,    /* ksm_remove_rmap_item */
	PM_EVENT_KINDS = 4,
};

struct pm_event {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint64_t mm;
	uint64_t address;
	uint32_t slot;
	int16_t err;
	uint16_t kind;
};

struct pm_knobs {
	uint32_t use_zero_pages;
	uint32_t max_page_sharing;
	uint32_t smart_scan;
	uint32_t merge_across_nodes;
	uint32_t prune_millisecs;
	uint32_t gap_pages;
	uint32_t vma_reserve;
};

struct pm_counts { /* since the start */
	uint64_t pages_scanned, pages_skipped;
	uint64_t bytes_read, bytes_hashed;
	uint64_t merge_requests, unmerge_requests;
	uint64_t failed[8]; /* by enum pm_failure */
	uint64_t breaks, thp_splits, read_errors, write_errors;
	uint64_t gap_pages;
	uint64_t segments_retired, segments_dropped;
};

struct pm_scanner {
	struct pm_mm *mms;
	struct pm_chunks chunks;
	struct pm_pool pool;
	struct pm_index index;
	struct pm_knobs knobs;
	struct pm_counts counts;
	uint64_t pass;
	uint32_t slice; /* counts calls of pm_mm_scan */
	bool zeros;     /* there have been pages to be dropped as zero */
	bool recalled;  /* run=2: what still gets merged is asked back */
	uint64_t seq;
	uint64_t max_map_count;
	uint64_t hashing; /* requests, of all processes */
	uint64_t in_pass; /* processes between begin_mm and the end of their scan */
	uint64_t zero_fresh;
	uint64_t chains, dups;
	uint32_t spill[PM_NODES_MAX], spill_used[PM_NODES_MAX]; /* window for pages whose own position is taken */
	int nodes;
	struct pm_reader reader;
	struct pm_batch batches[2]; /* one is filled or read while the other is matched */
	struct pm_batch hashed; /* without content */
	struct {
		uint32_t page, twin, n;
		bool by_twin; /* it writes */
	} streak; /* of matches: pages in the order of their twins */
	unsigned int filling;
	uint32_t filled; /* slots, by the batch that was matched last */
	uint32_t differing[PM_DIFFERING]; /* pages of an answer that proved to differ from their slots: as many as are matched anew at once */
	size_t ndiffering;
	bool anew; /* such pages are being matched */
	bool whole; /* samples tell too little of what these processes hold: pages are hashed whole */
	struct {
		uint32_t judged, differed; /* pages whose samples are another's, and those that are other pages nevertheless */
		uint32_t mask, evicted;
		struct {
			uint32_t page, sampled, whole;
		} of[PM_PROOFS];
	} proofs; /* pages hashed whole besides, chosen by their samples */
	uint32_t *lone; /* slots from which a page proved to differ in this pass */
	size_t nlone, lone_cap;
	struct pm_page_region spans[PM_SPANS];
	struct pm_maps maps;
	struct pm_pool_run run;
	char *datagram; /* PM_MESSAGE_MAX */
	bool tracing;
	struct pm_event *events;
	uint64_t event_head, event_tail, events_lost;
};

int pm_scanner_init(struct pm_scanner *scanner);
void pm_scanner_deinit(struct pm_scanner *scanner);

struct pm_mm_fds {
	int pagemap, maps, mem, uffd; /* -1: not there; duplicated */
};
int pm_mm_add(struct pm_scanner *scanner, uint64_t number, pid_t pid, const struct pm_mm_fds *fds, uint64_t parent);
void pm_mm_remove(struct pm_scanner *scanner, struct pm_mm *mm);
/* A knob by its name.  0, -ENOENT, -EINVAL or -ERANGE. */
int pm_set_knob(struct pm_scanner *scanner, const char *name, uint64_t value);
int pm_trace(struct pm_scanner *scanner, bool on);
void pm_begin_pass(struct pm_scanner *scanner);
struct pm_mm *pm_mm_find(const struct pm_scanner *scanner, uint64_t number);

/* region.c */
int pm_mm_mark(struct pm_mm *mm, uint64_t start, uint64_t end, uint32_t kind);
void pm_mm_set_all(struct pm_mm *mm, bool on);
int pm_mm_exclude(struct pm_mm *mm, uint64_t start, uint64_t end);
void pm_mm_gone(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t start, uint64_t end, uint32_t how);
int pm_mm_refresh(struct pm_scanner *scanner, struct pm_mm *mm);
/* An agent has just changed mappings, and is likely to change more: they are read when it is done. */
void pm_mm_put_off(struct pm_mm *mm);
/* The first mapping of a pool that ends after an address; the one that holds it, or NULL. */
size_t pm_mm_part_at(const struct pm_mm *mm, uint64_t address);
const struct pm_part *pm_mm_part(const struct pm_mm *mm, uint64_t address);

/* walk.c */
/* 1: has regions; 0: none; -errno. */
int pm_mm_begin(struct pm_scanner *scanner, struct pm_mm *mm);
int pm_mm_scan(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t budget, uint64_t *scanned, bool *done);

/* match.c */
void pm_candidate_add(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, bool decided);
void pm_candidates_match(struct pm_scanner *scanner);
/* Merge a page whose sum is known with a slot that is there; false when there is none. */
bool pm_match_known(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i);
/* Match a page that proved to differ from what has its sum, and others with that sum. */
void pm_match_anew(struct pm_scanner *scanner, uint32_t page);
/* Leave a PM_LOOKED page whose sum is known, to be tried again ever more rarely; `link` PM_LINK_KNOWN or _LEFT. */
void pm_page_leave(struct pm_chunk *chunk, uint32_t i, uint32_t link);

/* Match pages whose hashes are known and whose content is not: it can be given. */
void pm_match_hashed(struct pm_scanner *scanner, struct pm_batch *batch);
/* After slots were retired: pages that were to be, or are, merged with them become candidates again. */
void pm_segment_retire(struct pm_scanner *scanner, struct pm_segment *segment); /* sweep.c */

/* give.c */
struct pm_request_out {
	uint64_t seq;
	const char *datagram;
	size_t length;
	int fds[PM_FDS_MAX];
	size_t nfds;
};
enum { PM_HASHING_MOST = 4 }; /* requests for hashes that a process is asked at a time */
/* Have a full batch of pages hashed by their process; false: it is to be read. */
bool pm_hash_want(struct pm_scanner *scanner, const struct pm_batch *batch);
/* What was collected is asked. */
void pm_hash_flush(struct pm_mm *mm);
/* A request for hashes, as the datagram that is sent; false: there is none to be made. */
bool pm_hash_take(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request_out *out);
int pm_hash_answer(struct pm_scanner *scanner, struct pm_mm *mm, const struct pm_header *header, const void *body, size_t bytes);
void pm_hash_forget(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request *request);
/* A slot that the process of the page will write; PM_NO_SLOT: there is none to be had. */
uint32_t pm_give_slot(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, const struct pm_chunk *other);
/* Whether pages of the chunk have places in a segment that its process writes. */
bool pm_gives_window(const struct pm_scanner *scanner, const struct pm_chunk *chunk);
/* Whether the page's process is to write the slot that the page waits for. */
bool pm_may_give(const struct pm_scanner *scanner, const struct pm_chunk *chunk, uint32_t i);
/* It does not answer: what it was asked to hash and to write is not waited for, and it is asked for no more of that. */
void pm_give_stop(struct pm_scanner *scanner, struct pm_mm *mm);
/* Close the segments that a process will not write to any more; `all`: whatever is under way. */
void pm_give_close(struct pm_scanner *scanner, struct pm_mm *mm, bool all);

/* request.c */
/* 1 and a request, or 0: nothing to ask now, or -errno. */
int pm_mm_take(struct pm_scanner *scanner, struct pm_mm *mm, struct pm_request_out *out);
/* 0, or -EINVAL: not an answer to what was asked. */
int pm_mm_answer(struct pm_scanner *scanner, struct pm_mm *mm, const void *datagram, size_t length);
/* More pages of a chunk are wanted. */
void pm_chunk_wake(struct pm_chunk *chunk);
void pm_mm_lost(struct pm_scanner *scanner, struct pm_mm *mm);
void pm_mm_unmerge(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t start, uint64_t end);
void pm_unmerge_all(struct pm_scanner *scanner);

/* sweep.c */
void pm_end_pass(struct pm_scanner *scanner);
uint64_t pm_metadata(const struct pm_scanner *scanner);

/* record.c: every change of a page goes through these */
struct pm_chunk *pm_mm_chunk(const struct pm_mm *mm, uint64_t address);
/* The first chunk that ends after an address. */
size_t pm_mm_chunk_at(const struct pm_mm *mm, uint64_t address);
/* The chunk of an address, made where it is missing, with records for all of [start, end) that lies in it. */
struct pm_chunk *pm_mm_chunk_need(struct pm_scanner *scanner, struct pm_mm *mm, uint64_t start, uint64_t end);
void pm_mm_chunks_trim(struct pm_scanner *scanner, struct pm_mm *mm);
void pm_set_state(struct pm_chunk *chunk, uint32_t i, unsigned int state);
/* Take a page out of whatever it is in (index, slot) and leave it in `state` (PM_NONE or PM_LOOKED). */
void pm_page_detach(struct pm_scanner *scanner, struct pm_chunk *chunk, uint32_t i, unsigned int state);
/* Before a PM_LOOKED page's link is changed: it may be counted as left for want of mappings. */
void pm_page_unleave(struct pm_chunk *chunk, uint32_t i);
void pm_slot_index(struct pm_scanner *scanner, uint32_t slot);
void pm_slot_unindex(struct pm_scanner *scanner, uint32_t slot);
bool pm_slot_indexed(const struct pm_scanner *scanner, uint32_t slot);
void pm_slot_release(struct pm_scanner *scanner, uint32_t slot);

void pm_event(struct pm_scanner *scanner, enum pm_event_kind kind, uint64_t mm, uint64_t address, uint32_t slot,
	      int err);
uint64_t pm_now_ns(void);

#endif
