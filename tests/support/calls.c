/* SPDX-License-Identifier: MIT */
/*
 * Threads that change their mappings all the time, each in its own part of one region, while somebody merges it: what MADV_DONTNEED leaves behind must
 * read as zeros, what is moved must arrive, and what is protected must stay.  calls SECONDS PAGES
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, THREADS = 4, MADV_MERGEABLE_ = 12, MREMAP_KEEP = 7 /* MAYMOVE | FIXED | DONTUNMAP */ };

static unsigned char *memory;
static size_t pages;
static atomic_bool over, failed;
static atomic_ulong dropped, moved;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

/* The same as stress.c's, so that the test's segment serves both. */
static void fill(unsigned char *at, size_t page)
{
	uint64_t *word = (uint64_t *)at;

	for (size_t i = 0; i < WORDS; i++)
		word[i] = mix(page * WORDS + i + 1);
}

static bool check(const unsigned char *at, size_t page, bool full, const char *when)
{
	const uint64_t *word = (const uint64_t *)at;

	for (size_t i = 0; i < WORDS; i++)
		if (word[i] != (full ? mix(page * WORDS + i + 1) : 0)) {
			printf("page %zu, word %zu after %s: %#lx\n", page, i, when, (unsigned long)word[i]);
			atomic_store(&failed, true);
			return false;
		}
	return true;
}

static void *work(void *argument)
{
	size_t part = pages / THREADS, first = (size_t)argument * part;
	unsigned char *mine = memory + first * PAGE, *other;
	bool *full = malloc(part);
	unsigned int seed = (unsigned int)first + 1;

	memset(full, 1, part);
	other = mmap(NULL, part * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	while (!atomic_load(&over) && !atomic_load(&failed)) {
		size_t from = (size_t)rand_r(&seed) % part, n = 1 + (size_t)rand_r(&seed) % (part - from);
		unsigned char *at = mine + from * PAGE;
		const char *what = "reading";

		n = rand_r(&seed) % 2 && n > 8 ? 8 : n;
		switch (rand_r(&seed) % 6) {
		case 0:
		case 1:
			what = "MADV_DONTNEED";
			if (madvise(at, n * PAGE, MADV_DONTNEED))
				perror(what), atomic_store(&failed, true);
			memset(full + from, 0, n);
			atomic_fetch_add(&dropped, n);
			break;
		case 2:
		case 3:
			what = "filling";
			for (size_t i = 0; i < n; i++)
				fill(at + i * PAGE, first + from + i);
			memset(full + from, 1, n);
			break;
		case 4:
			what = "mprotect";
			mprotect(at, n * PAGE, PROT_READ);
			for (size_t i = 0; i < n; i++)
				check(at + i * PAGE, first + from + i, full[from + i], what);
			mprotect(at, n * PAGE, PROT_READ | PROT_WRITE);
			break;
		default: /* there and back again; one mapping each, as mremap(2) wants it, may be any number */
			what = "mremap";
			for (size_t i = 0; i < n && i < 4; i++) {
				unsigned char *here = at + i * PAGE, *there = other + i * PAGE;

				if (mremap(here, PAGE, PAGE, MREMAP_KEEP, there) != there) {
					perror("mremap"), atomic_store(&failed, true);
					break;
				}
				check(there, first + from + i, full[from + i], "a move");
				check(here, 0, false, "a move away");
				if (mremap(there, PAGE, PAGE, MREMAP_KEEP, here) != here)
					perror("mremap back"), atomic_store(&failed, true);
				atomic_fetch_add(&moved, 1);
			}
		}
		for (size_t i = 0; i < n; i++)
			if (!check(at + i * PAGE, first + from + i, full[from + i], what))
				break;
	}
	free(full);
	return NULL;
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 3;
	pthread_t threads[THREADS];

	pages = argc > 2 ? (size_t)atol(argv[2]) : 2048;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t i = 0; i < pages; i++)
		fill(memory + i * PAGE, i);
	printf("memory %lu\n", (unsigned long)(uintptr_t)memory);
	fflush(stdout);
	if (madvise(memory, pages * PAGE, MADV_MERGEABLE_)) {
		perror("madvise");
		return 1;
	}
	for (size_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	nanosleep(&(struct timespec){ (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) }, NULL);
	atomic_store(&over, true);
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	printf("dropped %lu moved %lu\n", dropped, moved);
	return failed;
}
