/* SPDX-License-Identifier: MIT */
/*
 * While the threads are stopped, none of them moves: not those that are asleep, nor those that have just been made, nor those that block every
 * signal that they can; and afterwards all go on.  Threads make threads all the time.
 */
#include "agent.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MAKERS = 4, WRITERS = 3, CHAINS = 24, STOPS = 400 };

#define CHECK(condition)                                                            \
	do {                                                                        \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                    \
		}                                                                   \
	} while (0)

static _Atomic uint64_t moves;
static atomic_bool over;
static atomic_int chained;
static pthread_attr_t alone;

static void *be_short(void *unused)
{
	for (int i = 0; i < 200; i++)
		atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
	return unused;
}

static void *make_threads(void *unused)
{
	while (!atomic_load(&over)) {
		pthread_t child;

		CHECK(pthread_create(&child, NULL, be_short, NULL) == 0);
		be_short(NULL);
		CHECK(pthread_join(child, NULL) == 0);
	}
	return unused;
}

/*
 * Each thread makes the next one and ends.  So the list of threads changes at its front and at its end while it is read: one that arrives just then may have
 * made another that this reading does not show.
 */
static void *be_a_link(void *unused)
{
	pthread_t next;

	atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
	if (atomic_load(&over) || pthread_create(&next, &alone, be_a_link, NULL)) {
		atomic_fetch_sub(&chained, 1);
		return unused;
	}
	atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
	return unused;
}

static void *write_always(void *unused)
{
	sigset_t everything;

	sigfillset(&everything);
	pthread_sigmask(SIG_SETMASK, &everything, NULL);
	while (!atomic_load(&over))
		atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
	return unused;
}

int main(void)
{
	pthread_t threads[MAKERS + WRITERS], link;
	int stops = 0, late = 0;

	pthread_attr_init(&alone);
	pthread_attr_setdetachstate(&alone, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&alone, 65536);
	for (int i = 0; i < CHAINS; i++) {
		atomic_fetch_add(&chained, 1);
		CHECK(pthread_create(&link, &alone, be_a_link, NULL) == 0);
	}

	for (int i = 0; i < MAKERS + WRITERS; i++)
		CHECK(pthread_create(&threads[i], NULL, i < MAKERS ? make_threads : write_always, NULL) == 0);
	while (stops < STOPS) {
		int error = pm_freeze_begin(100000);

		if (error) {
			CHECK(error == -ETIMEDOUT && ++late < STOPS);
			continue;
		}
		uint64_t before = atomic_load(&moves);
		for (volatile int i = 0; i < 20000; i++)
			;
		nanosleep(&(struct timespec){ .tv_nsec = 50000 }, NULL);
		CHECK(atomic_load(&moves) == before);
		pm_freeze_end();
		stops++;
		while (atomic_load(&moves) == before) /* they go on: meson's limit ends a test in which they don't */
			sched_yield();
	}
	atomic_store(&over, true);
	for (int i = 0; i < MAKERS + WRITERS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	while (atomic_load(&chained))
		sched_yield();
	printf("%d stops, %d too late\n", stops, late);
	return 0;
}
