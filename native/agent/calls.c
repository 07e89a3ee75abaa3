/* SPDX-License-Identifier: MIT */
/* The program's calls that the agent must see; each does what the kernel does, and what merging needs besides. */
#undef _FILE_OFFSET_BITS /* mmap and mmap64 are both defined here, each under its own name */
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "calls.h"
#include "link.h"
#include "lock.h"
#include "marks.h"
#include "refusal.h"
#include "replace.h"

PM_API long mbind(void *, unsigned long, int, const unsigned long *, unsigned long, unsigned int); /* <numaif.h> */

enum { PR_SET_MEMORY_MERGE_ = 67, PR_GET_MEMORY_MERGE_ = 68 };

/* Every replaced page lies in here; calls elsewhere cost one comparison. */
static _Atomic uint64_t merged_low = UINT64_MAX, merged_high;

void pm_calls_note_merged(uint64_t start, uint64_t end)
{
	uint64_t old = atomic_load(&merged_low);

	while (start < old && !atomic_compare_exchange_weak(&merged_low, &old, start))
		;
	old = atomic_load(&merged_high);
	while (end > old && !atomic_compare_exchange_weak(&merged_high, &old, end))
		;
}

static bool may_be_merged(uint64_t start, uint64_t end)
{
	return start < atomic_load(&merged_high) && end > atomic_load(&merged_low);
}

static int result(long value)
{
	if (value >= 0)
		return 0;
	errno = (int)-value;
	return -1;
}

/* A range, and what is to be done with it in the agent's thread, with the replacing lock held. */
struct task {
	uint64_t start, end;
	uint32_t kind; /* enum pm_mark */
	long result;   /* 0 or -errno */
};

static long in_agent(void (*work)(void *), uint64_t start, uint64_t end, uint32_t kind)
{
	struct task task = { start, end, kind, 0 };

	pm_errand(work, &task);
	return task.result;
}

/* Break the sharing of pool mappings in the range, now: each page becomes the process's own. */
static void break_sharing(void *argument)
{
	struct task *task = argument;
	struct pm_vma vma;

	for (uint64_t start = task->start; start < task->end && pm_vma_find(start, &vma) == 0 && vma.start < task->end; start = vma.end) {
		uint64_t from = vma.start > start ? vma.start : start, to = vma.end < task->end ? vma.end : task->end;

		if (!vma.pool)
			continue;
		if (vma.prot & PROT_WRITE) {
			if (syscall(SYS_madvise, from, to - from, MADV_POPULATE_WRITE) == 0)
				continue;
			if (errno == ENOMEM || errno == EINTR) {
				task->result = errno == ENOMEM ? -EAGAIN : -EINTR;
				return;
			}
		}
		task->result = pm_make_anonymous(from, to);
		if (task->result == -EBUSY) /* shared no more, which is all that is asked for */
			task->result = 0;
		if (task->result)
			return;
	}
}

static void make_anonymous(void *argument)
{
	struct task *task = argument;

	task->result = pm_make_anonymous(task->start, task->end);
}

/* Mark what there is of private memory in the range; -ENOMEM when there are holes in it. */
static void mark(void *argument)
{
	struct task *task = argument;
	struct pm_vma vma;

	for (uint64_t at = task->start; at < task->end; at = vma.end) {
		if (pm_vma_find(at, &vma) || vma.start >= task->end) {
			task->result = -ENOMEM;
			return;
		}
		if (vma.start > at)
			task->result = -ENOMEM;
		uint64_t from = vma.start > at ? vma.start : at, to = vma.end < task->end ? vma.end : task->end;

		if (!vma.shared && (vma.anonymous || vma.pool))
			pm_marks_set(from, to, task->kind);
	}
}

/* madvise(MADV_MERGEABLE or MADV_UNMERGEABLE) as the kernel's: 0 or -errno. */
long pm_calls_mergeable(uint64_t start, size_t length, bool on)
{
	uint64_t end = start + pm_page_up(length);
	long error, broken = 0;

	if (start % PM_PAGE_SIZE || end < start || (length && !pm_page_up(length)))
		return -EINVAL;
	if (start == end)
		return 0;
	pm_link_start();
	pm_replace_lock();
	error = in_agent(mark, start, end, on ? PM_MARK_MERGEABLE : PM_MARK_UNMERGEABLE);
	if (!on)
		broken = in_agent(break_sharing, start, end, 0);
	pm_replace_unlock();
	return broken ? broken : error;
}

/* What somebody else asks for on the program's behalf is done, and undone, as if the program had asked. */
void pm_calls_asked(const struct pm_range *range)
{
	struct task task = { range->start, range->end, range->flags, 0 };

	if (task.kind != PM_MARK_MERGEABLE && task.kind != PM_MARK_UNMERGEABLE)
		return;
	mark(&task);
	if (task.kind == PM_MARK_UNMERGEABLE)
		break_sharing(&task);
}

void pm_calls_asked_all(bool on)
{
	struct task task = { atomic_load(&merged_low), atomic_load(&merged_high), 0, 0 };

	if (on == pm_marks_all())
		return;
	pm_marks_set_all(on);
	if (!on)
		break_sharing(&task);
}

/* The owner's promise that a buffer is finished, and its end: 0 or -errno. */
long pm_calls_seal(uint64_t start, uint64_t end, bool on)
{
	int prot = on ? PROT_READ : PROT_READ | PROT_WRITE;
	long error = 0;

	if (start % PM_PAGE_SIZE || end % PM_PAGE_SIZE || start >= end)
		return -EINVAL;
	if (on)
		pm_link_start();
	pm_replace_lock(); /* not in the middle of a replacement that relies on the promise */
	if (syscall(SYS_mprotect, start, end - start, prot))
		error = -errno;
	else
		pm_marks_set(start, end, on ? PM_MARK_SEALED : PM_MARK_UNSEALED);
	pm_replace_unlock();
	return error;
}

long pm_calls_merge_any(bool on)
{
	if (on == pm_marks_all())
		return 0;
	if (on) {
		pm_marks_set_all(true);
		return pm_link_start() == -ENOTCONN ? -EINVAL : 0;
	}
	pm_replace_lock();
	pm_marks_set_all(false);
	long error = in_agent(break_sharing, atomic_load(&merged_low), atomic_load(&merged_high), 0);
	pm_replace_unlock();
	return error;
}

/* Fresh zeros over the pool mappings of the range, as MADV_DONTNEED leaves behind on anonymous memory.  One call each, no stop needed. */
static void discard(void *argument)
{
	struct task *task = argument;
	struct pm_vma vma;

	for (uint64_t start = task->start; start < task->end && pm_vma_find(start, &vma) == 0 && vma.start < task->end; start = vma.end) {
		uint64_t from = vma.start > start ? vma.start : start, to = vma.end < task->end ? vma.end : task->end;

		if (vma.pool && pm_mmap((void *)(uintptr_t)from, to - from, vma.prot,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
			task->result = -errno;
			return;
		}
	}
}

/*
 * Enter a call on [start, end).  Outside of all that was ever merged the gate alone keeps the agent away; inside, no replacement may be
 * going on from the preparation of the memory to the end of the call, and true is returned.
 */
static bool enter(uint64_t start, uint64_t end)
{
	pm_gate_enter(start, end);
	if (!may_be_merged(start, end)) /* asked behind the gate: the agent says first that it will merge, then looks for us */
		return false;
	pm_gate_leave();
	pm_replace_lock();
	return true;
}

static void leave(bool locked)
{
	if (locked)
		pm_replace_unlock();
	else
		pm_gate_leave();
}

/* Never merge the range, and make it ordinary memory: what its owner asks for next would not outlive a replacement. Ends with leave(true). */
static void exclude(uint64_t start, uint64_t end)
{
	pm_replace_lock();
	if (start >= end || !pm_link_configured())
		return;
	pm_marks_set(start, end, PM_MARK_EXCLUDED);
	if (may_be_merged(start, end))
		in_agent(make_anonymous, start, end, 0);
}

void pm_calls_exclude(uint64_t start, uint64_t end)
{
	exclude(start, end);
	leave(true);
}

PM_API int madvise(void *addr, size_t length, int advice)
{
	uint64_t start = (uintptr_t)addr, end = start + pm_page_up(length);
	bool sane = start % PM_PAGE_SIZE == 0 && end > start, locked;
	int error = 0;

	if (advice == MADV_MERGEABLE || advice == MADV_UNMERGEABLE) {
		if (!pm_link_configured())
			return result(syscall(SYS_madvise, addr, length, advice) < 0 ? -errno : 0);
		return result(pm_calls_mergeable(start, length, advice == MADV_MERGEABLE));
	}
	if (sane && (advice == MADV_DONTFORK || advice == MADV_WIPEONFORK || advice == MADV_DONTDUMP)) {
		exclude(start, end);
		locked = true;
	} else {
		locked = enter(start, end);
		if (sane && locked && (advice == MADV_DONTNEED || advice == MADV_FREE || advice == 24 /* DONTNEED_LOCKED */)) {
			error = result(in_agent(discard, start, end, 0));
			pm_marks_discarded(start, end);
		}
	}
	if (!error)
		error = (int)syscall(SYS_madvise, addr, length, advice);
	leave(locked);
	return error;
}

PM_API int munmap(void *addr, size_t length)
{
	uint64_t start = (uintptr_t)addr, end = start + pm_page_up(length);
	int error;

	pm_gate_enter(start, end);
	error = (int)syscall(SYS_munmap, addr, length);
	if (!error && end > start)
		pm_marks_gone(start, end);
	pm_gate_leave();
	return error;
}

PM_API void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	uint64_t start = (uintptr_t)old, end = start + pm_page_up(old_size ? old_size : 1);
	void *target = NULL;
	va_list more;
	bool locked, held = false;

	if (flags & (MREMAP_FIXED | 4 /* MREMAP_DONTUNMAP */)) {
		va_start(more, flags);
		target = va_arg(more, void *);
		va_end(more);
	}
	pm_gate_enter(0, UINT64_MAX); /* the target is not known before */
	/* Fixed, several mappings may be moved in one call, in part only: see remap.c. */
	locked = end > start && (may_be_merged(start, end) || (flags & MREMAP_FIXED && pm_marks_any()));
	if (locked) {
		pm_gate_leave();
		pm_replace_lock();
		long error = in_agent(make_anonymous, start, end, 0); /* grown, a mapping of the pool would show what comes next there */

		held = error == -EBUSY;
		if (error && error != -EBUSY) {
			leave(locked);
			errno = (int)-error;
			return MAP_FAILED;
		}
	}
	bool seen = pm_marks_seen(start, end);
	uint32_t kind = pm_marks_any() ? pm_marks_kind(start) : 0;
	struct pm_remap remap = { start, end, pm_page_up(new_size), (uintptr_t)target, flags, held, 0 };
	void *moved;

	bool whole = old_size && new_size && start % PM_PAGE_SIZE == 0;

	moved = locked && whole ? MAP_FAILED : (void *)syscall(SYS_mremap, old, old_size, new_size, flags, target);
	if (moved == MAP_FAILED && whole && !locked && errno == EFAULT && pm_marks_any()) { /* what is tracked and what is not are no longer one mapping */
		pm_gate_leave();
		pm_replace_lock();
		locked = true;
	}
	if (moved == MAP_FAILED && whole && locked) {
		pm_errand(pm_remap, &remap);
		moved = remap.result < 0 ? MAP_FAILED : (void *)remap.result;
		if (remap.result < 0)
			errno = (int)-remap.result;
	}

	if (moved != MAP_FAILED) {
		uint64_t to = (uintptr_t)moved, to_end = to + pm_page_up(new_size);

		pm_marks_gone(start, end);
		if (to != start)
			pm_marks_gone(to, to_end);
		if (seen)
			pm_marks_saw(to, to_end);
		if (kind == PM_MARK_MERGEABLE || kind == PM_MARK_EXCLUDED)
			pm_marks_set(to, to_end, kind);
	}
	leave(locked);
	return moved;
}

PM_API void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	uint64_t start = flags & MAP_FIXED ? (uintptr_t)addr : 0;

	pm_gate_enter(start, start ? start + pm_page_up(length) : 0);
	void *at = (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);

	if (at != MAP_FAILED) {
		start = (uintptr_t)at;
		if (flags & MAP_FIXED)
			pm_marks_gone(start, start + pm_page_up(length));
		if (flags & MAP_ANONYMOUS && flags & MAP_PRIVATE && pm_link_configured()) {
			pm_marks_saw(start, start + pm_page_up(length));
			if (flags & (MAP_GROWSDOWN | MAP_LOCKED))
				pm_marks_set(start, start + pm_page_up(length), PM_MARK_EXCLUDED);
		}
	}
	pm_gate_leave();
	return at;
}

PM_API void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
	__attribute__((alias("mmap")));

PM_API int mprotect(void *addr, size_t length, int prot)
{
	uint64_t start = (uintptr_t)addr;

	pm_gate_enter(start, start + pm_page_up(length));
	int error = (int)syscall(SYS_mprotect, addr, length, prot);
	pm_gate_leave();
	return error;
}

PM_API int mlock(const void *addr, size_t length)
{
	exclude(pm_page_down((uintptr_t)addr), pm_page_up((uintptr_t)addr + length));
	int error = (int)syscall(SYS_mlock, addr, length);
	leave(true);
	return error;
}

PM_API int mlock2(const void *addr, size_t length, unsigned int flags)
{
	exclude(pm_page_down((uintptr_t)addr), pm_page_up((uintptr_t)addr + length));
	int error = (int)syscall(SYS_mlock2, addr, length, flags);
	leave(true);
	return error;
}

/* All memory, and what comes: nothing of this process is merged until it is unlocked. */
PM_API int mlockall(int flags)
{
	pm_replace_lock();
	in_agent(make_anonymous, atomic_load(&merged_low), atomic_load(&merged_high), 0);
	int error = (int)syscall(SYS_mlockall, flags);
	if (!error)
		pm_refuse(PM_REFUSE_LOCKED, true);
	pm_replace_unlock();
	return error;
}

PM_API int munlockall(void)
{
	int error = (int)syscall(SYS_munlockall);

	if (!error)
		pm_refuse(PM_REFUSE_LOCKED, false);
	return error;
}

PM_API int pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
	uint64_t start = (uintptr_t)addr;

	if (pkey == -1)
		return mprotect(addr, length, prot);
	exclude(start, start + pm_page_up(length));
	int error = (int)syscall(SYS_pkey_mprotect, addr, length, prot, pkey);
	leave(true);
	return error;
}

PM_API long mbind(void *addr, unsigned long length, int mode, const unsigned long *nodes, unsigned long most, unsigned int flags)
{
	uint64_t start = (uintptr_t)addr;

	exclude(pm_page_down(start), start + pm_page_up(length));
	long error = syscall(SYS_mbind, addr, length, mode, nodes, most, flags);
	leave(true);
	return error;
}

PM_API int prctl(int option, ...)
{
	unsigned long a[4];
	va_list more;

	va_start(more, option);
	for (int i = 0; i < 4; i++)
		a[i] = va_arg(more, unsigned long);
	va_end(more);
	if (pm_link_configured() && option == PR_SET_MEMORY_MERGE_)
		return result(a[1] | a[2] | a[3] ? -EINVAL : pm_calls_merge_any(a[0] != 0));
	if (pm_link_configured() && option == PR_GET_MEMORY_MERGE_) {
		if (a[0] | a[1] | a[2] | a[3])
			return result(-EINVAL);
		return pm_marks_all();
	}
	return (int)syscall(SYS_prctl, option, a[0], a[1], a[2], a[3]);
}
