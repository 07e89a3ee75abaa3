/* SPDX-License-Identifier: MIT */
/*
 * What the gate promises: while it is closed over a range, no call of the program on it is under way, and what either side wrote is seen by the other; plain variables, for
 * ThreadSanitizer.  Calls elsewhere are not held up.
 */
#include "agent.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { CALLERS = 4, TURNS = 2000, PLACES = 8 };

#define CHECK(condition)                                                            \
	do {                                                                        \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                    \
		}                                                                   \
	} while (0)

static uint64_t places[CALLERS][PLACES]; /* a caller's own, but for the agent behind the closed gate */
static atomic_bool over;
static atomic_int calling;

static uint64_t page(uint64_t number)
{
	return (16 + number) * PM_PAGE_SIZE;
}

static void *call_always(void *argument)
{
	uintptr_t self = (uintptr_t)argument;

	for (uint64_t turn = 0; !atomic_load_explicit(&over, memory_order_relaxed); turn++) {
		uint64_t at = turn % PLACES;

		pm_gate_enter(page(at), page(at + 1));
		places[self][at]++;
		pm_gate_leave();
		if (turn == 0)
			atomic_fetch_add_explicit(&calling, 1, memory_order_relaxed);
	}
	return NULL;
}

int main(void)
{
	uint64_t added = 0, sum = 0, closed = 0;
	pthread_t threads[CALLERS];

	for (uintptr_t i = 0; i < CALLERS; i++)
		CHECK(pthread_create(&threads[i], NULL, call_always, (void *)i) == 0);
	while (atomic_load_explicit(&calling, memory_order_relaxed) < CALLERS)
		sched_yield();
	for (uint64_t turn = 0; closed < TURNS; turn++) {
		uint64_t first = turn % (PLACES / 2), last = first + PLACES / 2;

		if (pm_gate_close(page(first), page(last))) { /* they are always in some call: it is asked again */
			sched_yield();
			continue;
		}
		for (int i = 0; i < CALLERS; i++)
			for (uint64_t at = first; at < last; at++, added++)
				places[i][at]++;
		pm_gate_open();
		closed++;
	}
	atomic_store_explicit(&over, true, memory_order_relaxed);
	for (int i = 0; i < CALLERS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	for (int i = 0; i < CALLERS; i++)
		for (int at = 0; at < PLACES; at++)
			sum += places[i][at];
	CHECK(sum > added);
	printf("closed %llu times\n", (unsigned long long)closed);
	return 0;
}
