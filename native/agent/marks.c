/* SPDX-License-Identifier: MIT */
/*
 * What the program asked for, and which of its mappings the agent has seen come about.
 *
 * What a program may do a million times a second, map and unmap, only leaves an event in a ring, without a lock or a system call, also when a signal handler does
 * it on top of the same.  Whoever holds the lock next, or finds the ring half full, brings the lists up to date.  Notes to the daemon are sent by the agent's
 * thread: nobody else has the socket.
 */
#include "marks.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "link.h"
#include "lock.h"
#include "ranges.h"

enum { EVENTS = 1024, NOTES_MAX = 8192, PATIENT_TURNS = 3000, PATIENT_NS = 100000 };

enum what { SAW, GONE, DISCARDED };

struct event {
	_Atomic uint64_t turn; /* 1 + the place in the row of events whose turn it is; set last */
	uint64_t start, end;
	uint32_t what;
};

static struct pm_lock lock; /* of all that follows but the ring's head and tail */
static struct pm_ranges marks, seen;
static _Atomic bool all, any; /* any: something is marked */
static struct event ring[EVENTS];
static _Atomic uint64_t head, tail;
static uint64_t distrusted; /* events before this one came out of order: they prove nothing to be seen */
static struct pm_note notes[NOTES_MAX];
static uint32_t notes_from, notes_to;
static _Atomic bool listening, missed;
static _Atomic bool idle;

/* The agent's thread sleeps for long when nothing happens; while things do happen, it looks by itself. */
static void wake_if_idle(void)
{
	bool asleep = true;

	if (atomic_load(&idle) && atomic_compare_exchange_strong(&idle, &asleep, false))
		pm_agent_wake();
}

static void add_note(uint32_t type, struct pm_range range)
{
	if (!listening)
		return;
	if (notes_from == notes_to)
		notes_from = notes_to = 0;
	if (notes_to == NOTES_MAX) {
		memmove(notes, notes + notes_from, (notes_to - notes_from) * sizeof(*notes));
		notes_to -= notes_from;
		notes_from = 0;
	}
	if (notes_to == NOTES_MAX)
		missed = true;
	else
		notes[notes_to++] = (struct pm_note){ type, range };
}

static void apply(uint64_t start, uint64_t end, uint32_t what, bool trusted)
{
	if (what == SAW) {
		if (trusted)
			pm_ranges_put(&seen, start, end, 1);
		return;
	}
	if (what == GONE) {
		pm_ranges_cut(&seen, start, end);
		if (!pm_ranges_cut(&marks, start, end) && !all)
			return;
	}
	add_note(PM_GONE, (struct pm_range){ start, end, what == GONE ? PM_GONE_UNMAPPED : PM_GONE_DISCARDED, 0 });
}

/* With the lock held: bring the lists up to date, as far as the events are complete. */
static void drain(void)
{
	for (uint64_t at = atomic_load(&head);; at++) {
		struct event *event = &ring[at % EVENTS];

		if (atomic_load_explicit(&event->turn, memory_order_acquire) != at + 1)
			break;
		apply(event->start, event->end, event->what, at >= distrusted);
		atomic_store(&head, at + 1);
	}
}

/*
 * Take the lock, with all that has happened so far in the lists: what is marked now must not be cut by an event of before.  An event that does not become complete, its
 * thread not having run for long, or being the one that this signal handler runs on, is given up, and with it what was seen so far.
 */
static void enter(void)
{
	uint64_t until = atomic_load(&tail);

	for (int turn = 0;; turn++) {
		pm_lock(&lock);
		drain();
		if ((int64_t)(atomic_load(&head) - until) >= 0)
			return;
		if (turn == PATIENT_TURNS) {
			distrusted = atomic_load(&tail);
			seen.count = 0;
			atomic_fetch_add(&head, 1);
			turn = 0;
			drain();
		}
		pm_unlock(&lock);
		if (turn > 10)
			nanosleep(&(struct timespec){ .tv_nsec = PATIENT_NS }, NULL);
	}
}

static void leave(void)
{
	atomic_store_explicit(&any, all || marks.count, memory_order_relaxed);
	pm_unlock(&lock);
}

static void happened(uint64_t start, uint64_t end, uint32_t what)
{
	uint64_t turn = atomic_load(&tail);
	struct event *event;

	if (!pm_link_configured() || start >= end)
		return;
	do {
		for (; turn - atomic_load(&head) >= EVENTS; turn = atomic_load(&tail)) {
			enter(); /* which makes room */
			leave();
		}
	} while (!atomic_compare_exchange_weak(&tail, &turn, turn + 1));
	event = &ring[turn % EVENTS];
	event->start = start;
	event->end = end;
	event->what = what;
	atomic_store_explicit(&event->turn, turn + 1, memory_order_release);
	if ((turn + 1) % (EVENTS / 2) == 0) { /* without waiting for others' events */
		pm_lock(&lock);
		drain();
		leave();
	}
	if (what != SAW && atomic_load_explicit(&listening, memory_order_relaxed) && pm_marks_any()) {
		atomic_thread_fence(memory_order_seq_cst); /* the event is there before `idle` is looked at */
		wake_if_idle();
	}
}

void pm_marks_gone(uint64_t start, uint64_t end)
{
	happened(start, end, GONE);
}

void pm_marks_discarded(uint64_t start, uint64_t end)
{
	happened(start, end, DISCARDED);
}

void pm_marks_saw(uint64_t start, uint64_t end)
{
	happened(start, end, SAW);
}

static void set_part(uint64_t start, uint64_t end, uint32_t kind)
{
	if (kind == PM_MARK_UNMERGEABLE && !all)
		pm_ranges_cut(&marks, start, end);
	else
		pm_ranges_put(&marks, start, end, kind == PM_MARK_UNSEALED ? PM_MARK_MERGEABLE : kind);
	add_note(PM_MARK, (struct pm_range){ start, end, kind, 0 });
}

/* What is excluded stays so, whatever is asked for it later. */
void pm_marks_set(uint64_t start, uint64_t end, uint32_t kind)
{
	enter();
	while (start < end) {
		uint64_t from = end, to = end;

		if (kind != PM_MARK_EXCLUDED)
			pm_ranges_next(&marks, start, PM_MARK_EXCLUDED, &from, &to);
		if (start < from)
			set_part(start, from < end ? from : end, kind);
		start = to;
	}
	leave();
	pm_agent_wake();
}

void pm_marks_set_all(bool on)
{
	enter();
	all = on;
	if (!on)
		pm_ranges_keep(&marks, PM_MARK_EXCLUDED); /* prctl(PR_SET_MEMORY_MERGE, 0) clears what madvise marked, too */
	add_note(PM_ALL, (struct pm_range){ 0, 0, on, 0 });
	leave();
	pm_agent_wake();
}

bool pm_marks_all(void)
{
	return all;
}

bool pm_marks_any(void)
{
	return atomic_load_explicit(&any, memory_order_relaxed);
}

uint32_t pm_marks_kind(uint64_t addr)
{
	enter();
	uint32_t kind = pm_ranges_kind(&marks, addr);
	leave();
	return kind;
}

bool pm_marks_wanted(uint64_t start, uint64_t end)
{
	enter();
	bool wanted = !pm_ranges_touch(&marks, start, end, PM_MARK_EXCLUDED) &&
		      !pm_ranges_touch(&marks, start, end, PM_MARK_UNMERGEABLE) &&
		      (all || pm_ranges_cover(&marks, start, end, 0));
	leave();
	return wanted;
}

bool pm_marks_sealed(uint64_t start, uint64_t end)
{
	enter();
	bool sealed = pm_ranges_cover(&marks, start, end, PM_MARK_SEALED);
	leave();
	return sealed;
}

bool pm_marks_seen(uint64_t start, uint64_t end)
{
	enter();
	bool cover = pm_ranges_cover(&seen, start, end, 1);
	leave();
	return cover;
}

void pm_marks_listen(bool on)
{
	enter();
	listening = on;
	missed = false;
	notes_from = notes_to = 0;
	leave();
}

uint32_t pm_marks_notes(struct pm_note *out, uint32_t most)
{
	enter();
	uint32_t n = notes_to - notes_from < most ? notes_to - notes_from : most;

	memcpy(out, notes + notes_from, n * sizeof(*out));
	notes_from += n;
	leave();
	return n;
}

bool pm_marks_idle(void)
{
	atomic_store(&idle, true); /* first: an event that comes after the look finds it */
	enter();
	bool none = notes_from == notes_to;
	leave();
	if (!none)
		atomic_store(&idle, false);
	return none;
}

bool pm_marks_missed(void)
{
	return missed; /* false again when listening starts anew */
}

void pm_marks_each(void (*see)(const struct pm_range *ranges, uint32_t count))
{
	size_t size;
	uint32_t count;
	struct pm_range *copy;

	/* A copy: the lock is not held while the daemon makes us wait. */
	enter();
	count = marks.count;
	size = count * sizeof(*copy);
	copy = count ? pm_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
	if (copy != MAP_FAILED)
		memcpy(copy, marks.items, size);
	leave();
	if (copy == MAP_FAILED)
		return;
	see(copy, count);
	pm_munmap(copy, size);
}

bool pm_marks_own(uint64_t start, uint64_t end)
{
	return pm_ranges_own(&marks, start, end) || pm_ranges_own(&seen, start, end);
}

void pm_marks_lock(void)
{
	pm_lock(&lock);
}

void pm_marks_unlock(void)
{
	pm_unlock(&lock);
}

void pm_marks_forked(void)
{
	uint64_t end = atomic_load(&tail);

	for (drain(); atomic_load(&head) != end; drain()) {
		seen.count = 0; /* an event of a thread that does not exist any more */
		atomic_fetch_add(&head, 1);
	}
	listening = false;
	notes_from = notes_to = 0;
	atomic_store(&idle, false);
}
