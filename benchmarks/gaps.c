/* SPDX-License-Identifier: MIT */
/*
 * Threads that look at the clock all the time, and threads that sleep.  gaps BUSY SLEEPING
 * For each line read: the longest time, in ns, for which one of the busy ones did not get to look since the line before.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static _Atomic uint64_t longest;

static void *look(void *unused)
{
	struct timespec now;
	uint64_t before = 0;

	for (;;) {
		uint64_t at, seen;

		clock_gettime(CLOCK_MONOTONIC, &now);
		at = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
		seen = atomic_load_explicit(&longest, memory_order_relaxed);
		while (before && at - before > seen && !atomic_compare_exchange_weak(&longest, &seen, at - before))
			;
		before = at;
	}
	return unused;
}

static void *rest(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	int busy = argc > 1 ? atoi(argv[1]) : 1, sleeping = argc > 2 ? atoi(argv[2]) : 0;
	pthread_t thread;
	int byte;

	for (int i = 0; i < busy + sleeping; i++)
		if (pthread_create(&thread, NULL, i < busy ? look : rest, NULL))
			return 1;
	puts("ready");
	fflush(stdout);
	while ((byte = getchar()) != EOF) {
		if (byte != '\n')
			continue;
		printf("%llu\n", (unsigned long long)atomic_exchange(&longest, 0));
		fflush(stdout);
	}
	return 0;
}
