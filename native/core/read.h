/* SPDX-License-Identifier: MIT */
/* Reading a batch of another process's pages, and hashing them: beside the scanner, which meanwhile matches what was read before. */
#ifndef PM_READ_H
#define PM_READ_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pm_chunk;
struct pm_mm;

enum { PM_READ_PAGES = 256 }; /* read at once: 1 MiB, which stays in the cache between reading and matching */

struct pm_candidate {
	struct pm_chunk *chunk; /* NULL: could not be read */
	uint64_t address;
	uint32_t i;     /* in its chunk */
	bool exclusive; /* mapped by this process alone */
	bool decided;   /* unchanged since the first look by write tracking; else the sums decide */
};

struct pm_batch { /* pages of one process */
	struct pm_candidate candidates[PM_READ_PAGES];
	size_t n;
	struct pm_mm *mm;
	int nodes_max; /* NUMA nodes to be told apart; 0: none are */
	char *buffer;  /* PM_READ_PAGES pages */
	uint64_t keys[PM_READ_PAGES];
	int nodes[PM_READ_PAGES];
	uint64_t bytes_read;
	uint32_t hashed, read_errors;
};

struct pm_reader {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct pm_batch *work; /* what is being read */
	bool started, alone, end; /* alone: there is but one CPU, or no thread to be had */
};

void pm_reader_init(struct pm_reader *reader);
void pm_reader_deinit(struct pm_reader *reader);
/* Begin to read a batch; the one before is waited for.  `beside`: there is something to do meanwhile; else it is read here and now. */
void pm_reader_begin(struct pm_reader *reader, struct pm_batch *batch, bool beside);
/* Until that batch has been read. */
void pm_reader_wait(struct pm_reader *reader, const struct pm_batch *batch);

#endif
