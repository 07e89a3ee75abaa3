/* SPDX-License-Identifier: MIT */
/*
 * The agent's replacements against the program's own calls that change mappings.
 *
 * While the gate is closed over a range, such calls on it wait; before it closes, those under way are waited for.  Either side first makes itself
 * visible and then looks at the other, so that one of two that meet always sees the other.
 */
#include "agent.h"

#include <linux/futex.h>
#include <time.h>

static _Atomic uint64_t closed_start = UINT64_MAX, closed_end;
static _Atomic uint32_t inside, changes;

static void wake(void)
{
	atomic_fetch_add(&changes, 1);
	syscall(SYS_futex, &changes, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
}

static _Atomic uint32_t calls;

uint32_t pm_gate_calls(void)
{
	return atomic_load(&calls);
}

void pm_gate_enter(uint64_t start, uint64_t end)
{
	atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
	for (;;) {
		uint32_t seen = atomic_load(&changes);

		atomic_fetch_add(&inside, 1);
		if (start >= atomic_load(&closed_end) || end <= atomic_load(&closed_start))
			return;
		atomic_fetch_sub(&inside, 1);
		syscall(SYS_futex, &changes, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, seen, NULL, NULL, 0);
	}
}

void pm_gate_leave(void)
{
	atomic_fetch_sub(&inside, 1);
}

/* A call of the program is under way, or about to be: asked while the threads are stopped. */
bool pm_gate_busy(void)
{
	return atomic_load(&inside) != 0;
}

/* 0, or -EBUSY when a call of the program does not end; the gate is open then. */
int pm_gate_close(uint64_t start, uint64_t end)
{
	atomic_store(&closed_start, start);
	atomic_store(&closed_end, end);
	for (int turn = 0; atomic_load(&inside); turn++) {
		if (turn == 200) {
			pm_gate_open();
			return -EBUSY;
		}
		nanosleep(&(struct timespec){ .tv_nsec = 10000 }, NULL);
	}
	return 0;
}

void pm_gate_open(void)
{
	atomic_store(&closed_end, 0);
	atomic_store(&closed_start, UINT64_MAX);
	wake();
}

void pm_gate_reset(void)
{
	atomic_store(&inside, 0);
	atomic_store(&closed_end, 0);
	atomic_store(&closed_start, UINT64_MAX);
}
