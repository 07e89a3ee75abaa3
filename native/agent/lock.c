/* SPDX-License-Identifier: MIT */
/*
 * Locks that a program's signal handlers may meet, and errands for the agent's thread.
 *
 * Whoever holds a lock has its signals blocked, but for the one that stops threads: so no handler runs on top of a holder.  That costs two system calls, and is
 * therefore kept out of what programs do often: munmap(2) and mmap(2) take no lock (marks.c, gate.c).
 *
 * What needs descriptors (looking at mappings, stopping threads) is done by the agent's thread, which has a descriptor table of its own.  A thread of the program
 * that needs it gives it an errand, and waits.
 */
#include "lock.h"

#include <linux/futex.h>
#include <time.h>

#include "marks.h"

enum { STOP_SIGNAL = 33, HEAR_AGAIN_NS = 5000000, COMES_WITHIN_NS = 100000000 };

static const uint32_t coming = UINT32_MAX;

static struct pm_lock replacing;
static _Atomic uint32_t wanted_by_agent, bell; /* bell: rung for an agent that waits for the lock */
static struct {
	void (*work)(void *argument);
	void *argument;
	_Atomic uint32_t state; /* 0 none, 1 to be done, 2 done */
} errand;
static _Atomic uint32_t agent_tid; /* also a futex: COMING until it is there */
static _Atomic int agent_pid;
static _Thread_local bool is_agent __attribute__((tls_model("initial-exec")));
static _Thread_local bool holds_all __attribute__((tls_model("initial-exec")));

static long futex(_Atomic uint32_t *word, int op, uint32_t value, long timeout_ns)
{
	struct timespec timeout = { .tv_nsec = timeout_ns };

	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout_ns ? &timeout : NULL, NULL, 0);
}

static uint64_t block_signals(void)
{
	uint64_t all = ~(1ULL << (STOP_SIGNAL - 1)), before = 0;

	syscall(SYS_rt_sigprocmask, 0 /* SIG_BLOCK */, &all, &before, sizeof(before));
	return before;
}

static void restore_signals(uint64_t before)
{
	syscall(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &before, NULL, sizeof(before));
}

static bool try_take(struct pm_lock *lock)
{
	uint32_t free = 0;

	return atomic_compare_exchange_strong(&lock->word, &free, 1);
}

void pm_lock(struct pm_lock *lock)
{
	uint64_t mask;

	if (holds_all)
		return;
	mask = is_agent ? 0 : block_signals();
	if (!try_take(lock))
		while (atomic_exchange(&lock->word, 2))
			futex(&lock->word, FUTEX_WAIT, 2, 0);
	lock->mask = mask;
}

void pm_unlock(struct pm_lock *lock)
{
	uint64_t mask = lock->mask;

	if (holds_all)
		return;
	if (atomic_exchange(&lock->word, 0) == 2)
		futex(&lock->word, FUTEX_WAKE, 1, 0);
	if (!is_agent)
		restore_signals(mask);
}

void pm_agent_is_coming(void)
{
	atomic_store(&agent_tid, coming);
}

void pm_agent_is_gone(void)
{
	atomic_store(&agent_tid, 0);
}

void pm_agent_is_here(void)
{
	is_agent = true;
	atomic_store(&agent_pid, getpid());
	atomic_store(&agent_tid, (uint32_t)syscall(SYS_gettid));
	futex(&agent_tid, FUTEX_WAKE, INT32_MAX, 0);
}

bool pm_agent_is_me(void)
{
	return is_agent;
}

/* Whether an errand can be given to it.  It is waited for when it has just been made, but not for ever: this may be a signal handler of the thread that makes it. */
static bool agent_answers(void)
{
	if (atomic_load(&agent_tid) == coming)
		futex(&agent_tid, FUTEX_WAIT, coming, COMES_WITHIN_NS);

	uint32_t tid = atomic_load(&agent_tid);
	return tid && tid != coming && getpid() == atomic_load(&agent_pid);
}

void pm_agent_wake(void)
{
	uint32_t tid = atomic_load(&agent_tid);

	if (tid && tid != coming && !is_agent)
		syscall(SYS_tgkill, atomic_load(&agent_pid), tid, PM_WAKE_SIGNAL);
}

static void ring_bell(void)
{
	atomic_fetch_add(&bell, 1);
	if (atomic_load(&wanted_by_agent))
		futex(&bell, FUTEX_WAKE, 1, 0);
}

/* One at a time stops threads and replaces: the agent's thread, or a thread of the program that unmerges. */
void pm_replace_lock(void)
{
	while (atomic_load(&wanted_by_agent) && !is_agent && !holds_all) /* it is never asked for without pause by the agent */
		futex(&wanted_by_agent, FUTEX_WAIT, 1, HEAR_AGAIN_NS);
	pm_lock(&replacing);
}

void pm_replace_unlock(void)
{
	pm_unlock(&replacing);
	if (!holds_all)
		ring_bell();
}

void pm_replace_lock_agent(void)
{
	uint32_t heard = atomic_load(&bell);

	if (try_take(&replacing))
		return;
	atomic_store(&wanted_by_agent, 1);
	for (; !try_take(&replacing); heard = atomic_load(&bell))
		if (!pm_errand_serve())
			futex(&bell, FUTEX_WAIT, heard, HEAR_AGAIN_NS);
	atomic_store(&wanted_by_agent, 0);
	futex(&wanted_by_agent, FUTEX_WAKE, INT32_MAX, 0);
}

bool pm_errand_serve(void)
{
	if (atomic_load(&errand.state) != 1)
		return false;
	errand.work(errand.argument);
	atomic_store(&errand.state, 2);
	futex(&errand.state, FUTEX_WAKE, 1, 0);
	return true;
}

void pm_errand(void (*work)(void *argument), void *argument)
{
	if (is_agent || holds_all || !agent_answers()) {
		work(argument);
		return;
	}
	errand.work = work;
	errand.argument = argument;
	atomic_store(&errand.state, 1);
	do {
		ring_bell();
		pm_agent_wake(); /* again after a while: with too many signals queued for this user, none can be sent */
		futex(&errand.state, FUTEX_WAIT, 1, HEAR_AGAIN_NS);
	} while (atomic_load(&errand.state) == 1);
	atomic_store(&errand.state, 0);
}

void pm_locks_fork(void)
{
	pm_replace_lock(); /* no fork in the middle of a replacement */
	pm_marks_lock();
	holds_all = true; /* fork handlers of others may make calls that are ours */
}

void pm_locks_forked(void)
{
	holds_all = false;
	pm_marks_unlock();
	pm_replace_unlock();
}

void pm_locks_forked_child(void)
{
	atomic_store(&agent_tid, 0);
	atomic_store(&wanted_by_agent, 0);
	pm_locks_forked();
}
