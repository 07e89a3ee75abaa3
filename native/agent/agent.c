/* SPDX-License-Identifier: MIT */
/* How the agent comes in: by LD_PRELOAD, or by a call of pm_agent_start. */
#include "agent.h"

#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "calls.h"
#include "link.h"
#include "marks.h"

void pm_hooks_install(void); /* hooks.c */

static _Atomic uint32_t replacing;
static _Atomic uint32_t replacing_owner;

/* One at a time stops threads and replaces: the agent's thread, or a thread of the program that unmerges. */
void pm_replace_lock(void)
{
	uint32_t nobody = 0;

	while (!atomic_compare_exchange_strong(&replacing, &nobody, 1)) {
		syscall(SYS_futex, &replacing, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
		nobody = 0;
	}
	atomic_store(&replacing_owner, (uint32_t)syscall(SYS_gettid));
}

void pm_replace_unlock(void)
{
	atomic_store(&replacing_owner, 0);
	atomic_store(&replacing, 0);
	syscall(SYS_futex, &replacing, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

static void before_fork(void)
{
	pm_replace_lock(); /* no fork in the middle of a replacement */
}

static void after_fork_parent(void)
{
	pm_replace_unlock();
}

static void after_fork_child(void)
{
	atomic_store(&replacing, 0);
	pm_marks_reset_locks();
	pm_gate_reset();
	pm_link_forked();
}

static void set_up(const char *path, bool preloaded)
{
	static _Atomic bool done;

	pm_link_configure(path, getenv("PAGEMERGE_DOMAIN"), preloaded);
	if (!atomic_exchange(&done, true))
		pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

__attribute__((constructor)) static void preload(void)
{
	const char *path = getenv("PAGEMERGE_AGENT_SOCKET"), *all = getenv("PAGEMERGE_ALL"), *list = getenv("LD_PRELOAD");

	if (!path || !list || !strstr(list, "libpagemerge-agent"))
		return;
	set_up(path, true);
	if (all && strcmp(all, "1") == 0)
		pm_calls_merge_any(true);
}

PM_API int pm_agent_start(const char *socket_path)
{
	if (!pm_link_configured()) {
		set_up(socket_path, false);
		pm_hooks_install();
	}
	return pm_link_start();
}

PM_API int pm_agent_madvise(void *addr, size_t length, int advice)
{
	return (int)pm_calls_mergeable((uintptr_t)addr, length, advice == 12);
}

PM_API int pm_agent_seal(void *addr, size_t length)
{
	return (int)pm_calls_seal((uintptr_t)addr, (uintptr_t)addr + length, true);
}

PM_API int pm_agent_unseal(void *addr, size_t length)
{
	return (int)pm_calls_seal((uintptr_t)addr, (uintptr_t)addr + length, false);
}

PM_API int pm_agent_prctl_set(int on)
{
	return (int)pm_calls_merge_any(on != 0);
}

PM_API int pm_agent_prctl_get(void)
{
	return pm_marks_all();
}

PM_API int pm_agent_connected(void)
{
	return pm_link_connected();
}
