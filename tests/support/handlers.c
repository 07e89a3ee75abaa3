/* SPDX-License-Identifier: MIT */
/*
 * handlers SECONDS PAGES: a program whose signal handlers change mappings, on top of threads that change mappings all the time, while somebody merges it.
 *
 * Each thread has a part of the region for itself and one for its handler, and checks both.  A handler that met a lock of the thread below it would hang: the program
 * then never ends.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
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

enum { PAGE = 4096, WORDS = PAGE / 8, THREADS = 4, SOME = 16, MERGEABLE = 12, UNMERGEABLE = 13 };

static uint64_t *memory;
static size_t pages;
static atomic_bool over, failed;
static atomic_ulong handled, forks, turns;
static _Thread_local size_t first; /* page of this thread's part; the handler's begins in its middle */
static _Thread_local unsigned int handler_seed;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

static void fill(size_t page, size_t n)
{
	for (size_t word = page * WORDS; word < (page + n) * WORDS; word++)
		memory[word] = mix(word + 1);
}

static void check(size_t page, size_t n, bool full, const char *when)
{
	for (size_t word = page * WORDS; word < (page + n) * WORDS; word++)
		if (memory[word] != (full ? mix(word + 1) : 0)) {
			fprintf(stderr, "handlers: word %zu of page %zu after %s: %#lx\n", word % WORDS, word / WORDS, when, (long)memory[word]);
			atomic_store(&failed, true);
			atomic_store(&over, true);
			return;
		}
}

/* Changes of a few pages that end as they began. */
static void change(size_t page, unsigned int what)
{
	void *at = memory + page * WORDS, *other;

	switch (what % 7) {
	case 0:
		other = mmap(NULL, SOME * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*(volatile char *)other = 1;
		munmap(other, SOME * PAGE);
		break;
	case 1:
		madvise(at, SOME * PAGE, MADV_DONTNEED);
		check(page, SOME, false, "MADV_DONTNEED");
		fill(page, SOME);
		break;
	case 2:
		madvise(at, SOME * PAGE, UNMERGEABLE);
		madvise(at, SOME * PAGE, MERGEABLE);
		break;
	case 3:
		mprotect(at, SOME * PAGE, PROT_READ);
		mprotect(at, SOME * PAGE, PROT_READ | PROT_WRITE);
		break;
	case 4: /* one mapping of its own, marked and gone again */
		other = mmap(NULL, SOME * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		madvise(other, SOME * PAGE, MERGEABLE);
		munmap(other, SOME * PAGE);
		break;
	case 5:
		other = mmap(NULL, SOME * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		other = mremap(other, SOME * PAGE, 2 * SOME * PAGE, MREMAP_MAYMOVE);
		munmap(other, 2 * SOME * PAGE);
		break;
	default:
		break;
	}
	check(page, SOME, true, "a change");
}

static void handle(int number)
{
	int saved = errno;
	size_t part = pages / THREADS, page = first + part / 2 + (size_t)rand_r(&handler_seed) % (part / 2 - SOME);

	(void)number;
	change(page, (unsigned int)rand_r(&handler_seed));
	if (atomic_fetch_add(&handled, 1) % 64 == 0) {
		pid_t child = fork();
		int status = 0;

		if (child == 0) {
			check(page, SOME, true, "fork");
			change(page, 1);
			_exit(atomic_load(&failed));
		}
		if (child > 0 && waitpid(child, &status, 0) == child && status)
			atomic_store(&failed, true);
		atomic_fetch_add(&forks, 1);
	}
	errno = saved;
}

static void *work(void *argument)
{
	size_t part = pages / THREADS;
	unsigned int seed = (unsigned int)(uintptr_t)argument + 1;
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
	struct itimerspec often = { { 0, 700000 }, { 0, 700000 } };
	timer_t timer;

	first = (uintptr_t)argument * part;
	handler_seed = seed + 100;
	event._sigev_un._tid = (int)syscall(SYS_gettid);
	timer_create(CLOCK_MONOTONIC, &event, &timer);
	timer_settime(timer, 0, &often, NULL);
	while (!atomic_load(&over)) {
		change(first + (size_t)rand_r(&seed) % (part / 2 - SOME), (unsigned int)rand_r(&seed));
		atomic_fetch_add(&turns, 1);
	}
	timer_delete(timer);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handle, .sa_flags = SA_RESTART };
	pthread_t threads[THREADS];
	time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 3);

	pages = argc > 2 ? (size_t)atol(argv[2]) : 2048;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fill(0, pages);
	if (madvise(memory, pages * PAGE, MERGEABLE)) {
		perror("handlers: madvise");
		return 2;
	}
	printf("memory %lu\n", (unsigned long)(uintptr_t)memory);
	fflush(stdout);
	sigaction(SIGUSR1, &action, NULL);
	for (size_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	while (time(NULL) < end && !atomic_load(&over))
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	atomic_store(&over, true);
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	printf("turns %lu handled %lu forks %lu\n", turns, handled, forks);
	return atomic_load(&failed) || !handled || !turns;
}
