/* SPDX-License-Identifier: MIT */
/*
 * descriptors close|count SECONDS PAGES: a program that minds its descriptors while it is merged.
 *
 * close: threads write to mergeable memory and check each write, and one closes every descriptor but the first three without pause, by close_range(2) and one by
 * one.  count: open(2) must give the numbers that it gives without the agent, also while other threads make all the calls that need the agent, and children must
 * inherit what was opened here and nothing else.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, WRITERS = 8, MERGEABLE = 12, UNMERGEABLE = 13, KEEP = 8 };

static uint64_t *memory;
static size_t pages;
static atomic_bool over, failed;
static atomic_ulong turns, writes;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

/* The same content as stress.c's, so that the test's segment serves both. */
static uint64_t base(size_t word)
{
	return mix(word + 1);
}

static void fail(const char *what, long found, long wanted)
{
	fprintf(stderr, "descriptors: %s: %ld, not %ld\n", what, found, wanted);
	atomic_store(&failed, true);
	atomic_store(&over, true);
}

/* One word of a page is changed, looked at for a while, and put back, so that the page can be merged again. */
static void *write_always(void *argument)
{
	uint64_t seed = (uintptr_t)argument + 1;

	while (!atomic_load(&over)) {
		seed = mix(seed + 0x9e3779b97f4a7c15ULL);
		size_t page = (seed >> 8) % (pages / WRITERS) * WRITERS + (uintptr_t)argument, word = page * WORDS + (seed >> 40) % WORDS;
		volatile uint64_t *at = &memory[word];

		*at = seed;
		for (uint64_t i = 0; i < (seed >> 20) % 16384 && *at == seed; i++) /* longer than a replacement takes */
			;
		if (*at != seed)
			fail("a write was lost", (long)*at, (long)seed);
		*at = base(word);
		if (*at != base(word))
			fail("a write back was lost", (long)*at, (long)base(word));
		atomic_fetch_add(&writes, 1);
	}
	return NULL;
}

static void *close_always(void *unused)
{
	for (unsigned long turn = 0; !atomic_load(&over); turn++) {
		if (turn % 4)
			syscall(SYS_close_range, 3u, ~0u, 0u);
		else
			for (int fd = 3; fd < 1024; fd++)
				close(fd);
		atomic_fetch_add(&turns, 1);
	}
	return unused;
}

/* Calls for which the agent has to look at mappings, or to stop the threads. */
static void *call_always(void *unused)
{
	unsigned int seed = 1;

	while (!atomic_load(&over)) {
		size_t page = (size_t)rand_r(&seed) % (pages - KEEP);
		void *at = memory + page * WORDS;

		switch (rand_r(&seed) % 4) {
		case 0: madvise(at, KEEP * PAGE, UNMERGEABLE); break;
		case 1: madvise(at, KEEP * PAGE, MADV_DONTNEED); break;
		case 2:
			for (size_t word = page * WORDS; word < (page + KEEP) * WORDS; word++)
				memory[word] = base(word);
			break;
		default: madvise(at, KEEP * PAGE, MERGEABLE);
		}
	}
	return unused;
}

static void count_in_child(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		execl("/bin/sh", "sh", "-c", "set -- /proc/self/fd/*; for one; do case $one in */[0-2]) ;; *) test ! -e $one || exit 1;; esac; done", NULL);
		_exit(2);
	}
	while (waitpid(child, &status, 0) != child)
		;
	if (status)
		fail("a child's descriptors, its status", WEXITSTATUS(status), 0);
}

static void count_always(time_t end)
{
	for (unsigned long turn = 0; time(NULL) < end && !atomic_load(&over); turn++) {
		int one = open("/dev/null", O_RDONLY), two = dup(one);
		DIR *dir;
		long n = 0;

		if (one != 3 || two != 4)
			fail("the number of a new descriptor", one == 3 ? two : one, one == 3 ? 4 : 3);
		dir = opendir("/proc/self/fd");
		for (struct dirent *entry; (entry = readdir(dir));)
			n += entry->d_name[0] != '.';
		closedir(dir);
		if (n != 6)
			fail("how many are listed", n, 6);
		close(two);
		close(one);
		if (turn % 200 == 0)
			count_in_child();
		atomic_fetch_add(&turns, 1);
	}
}

int main(int argc, char **argv)
{
	pthread_t threads[WRITERS + 1];
	bool closes = argc > 1 && strcmp(argv[1], "close") == 0;
	time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 3);
	int n = 0;

	pages = argc > 3 ? (size_t)atol(argv[3]) : 2048;
	syscall(SYS_close_range, 3u, ~0u, 0u);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t word = 0; word < pages * WORDS; word++)
		memory[word] = base(word);
	if (memory == MAP_FAILED || madvise(memory, pages * PAGE, MERGEABLE)) {
		perror("descriptors: madvise");
		return 2;
	}
	printf("memory %lu\n", (unsigned long)(uintptr_t)memory);
	fflush(stdout);
	if (closes) {
		for (; n < WRITERS; n++)
			pthread_create(&threads[n], NULL, write_always, (void *)(uintptr_t)n);
		pthread_create(&threads[n++], NULL, close_always, NULL);
		while (time(NULL) < end && !atomic_load(&over))
			nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	} else {
		for (; n < 2; n++)
			pthread_create(&threads[n], NULL, call_always, NULL);
		count_always(end);
	}
	atomic_store(&over, true);
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	printf("turns %lu writes %lu\n", turns, writes);
	return atomic_load(&failed) || !turns;
}
