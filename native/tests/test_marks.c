/* SPDX-License-Identifier: MIT */
/* Threads, and a signal handler on top of them, map and unmap while marks are set and read: the lists say in the end what happened last, and every note comes. */
#include "marks.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "check.h"
#include "link.h"

enum { THREADS = 4, TURNS = 4000 /* few enough for all notes to be kept */, SLOTS = 64, ABOVE = 1 << 20 };

static atomic_int running;
static atomic_long unmapped;

bool pm_link_configured(void)
{
	return true;
}

static uint64_t place(uintptr_t thread, unsigned int slot)
{
	return ((thread + 1) * ABOVE + 2 * slot) * (uint64_t)PM_PAGE_SIZE; /* with gaps, so that no two are one range */
}

static void handle(int number)
{
	uint64_t start = place(THREADS, (unsigned int)number);

	pm_marks_saw(start, start + PM_PAGE_SIZE);
	pm_marks_gone(start, start + PM_PAGE_SIZE);
	pm_marks_set(start, start + PM_PAGE_SIZE, PM_MARK_MERGEABLE);
	pm_marks_gone(start, start + PM_PAGE_SIZE);
	atomic_fetch_add(&unmapped, 1);
}

static void *map_and_unmap(void *argument)
{
	uintptr_t self = (uintptr_t)argument;

	for (unsigned int turn = 0; turn < TURNS; turn++) {
		uint64_t start = place(self, turn % SLOTS), end = start + PM_PAGE_SIZE;

		pm_marks_saw(start, end);
		if (turn % 16 == 0)
			CHECK(pm_marks_seen(start, end));
		if (turn % 8 == 0)
			pm_marks_set(start, end, PM_MARK_MERGEABLE);
		if (turn % 64 == 0)
			CHECK(pm_marks_kind(start) == PM_MARK_MERGEABLE && pm_marks_wanted(start, end));
		pm_marks_gone(start, end);
		if (turn % 8 == 0)
			atomic_fetch_add(&unmapped, 1);
		if (turn % 128 == 0)
			raise(SIGUSR1);
	}
	for (unsigned int slot = 0; slot < SLOTS; slot++) {
		uint64_t start = place(self, slot);

		CHECK(!pm_marks_seen(start, start + PM_PAGE_SIZE) && !pm_marks_kind(start));
		pm_marks_saw(start, start + PM_PAGE_SIZE);
	}
	atomic_fetch_sub(&running, 1);
	return NULL;
}

int main(void)
{
	struct sigaction action = { .sa_handler = handle };
	pthread_t threads[THREADS];
	struct pm_note notes[64];
	long gone = 0, marked = 0;
	uint32_t n;

	sigaction(SIGUSR1, &action, NULL);
	pm_marks_listen(true);
	atomic_store(&running, THREADS);
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, map_and_unmap, (void *)i) == 0);
	for (bool over = false; !over;) {
		over = !atomic_load(&running);
		while ((n = pm_marks_notes(notes, 64)))
			for (uint32_t i = 0; i < n; i++) {
				gone += notes[i].type == PM_GONE;
				marked += notes[i].type == PM_MARK;
			}
	}
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(!pm_marks_missed());
	CHECK_EQUAL(marked, atomic_load(&unmapped));
	CHECK(gone >= 1 && gone <= marked); /* a handler's page may be marked twice before it is unmapped once */
	CHECK(!pm_marks_any());
	for (uintptr_t i = 0; i < THREADS; i++)
		for (unsigned int slot = 0; slot < SLOTS; slot++)
			CHECK(pm_marks_seen(place(i, slot), place(i, slot) + PM_PAGE_SIZE));
	return 0;
}
