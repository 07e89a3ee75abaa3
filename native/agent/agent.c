/* SPDX-License-Identifier: MIT */
/* How the agent comes in: by LD_PRELOAD, or by a call of pm_agent_start. */
#include "agent.h"

#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "calls.h"
#include "link.h"
#include "lock.h"
#include "marks.h"
#include "refusal.h"

void pm_hooks_install(void); /* hooks.c */

static int find_own(struct dl_phdr_info *info, size_t size, void *found)
{
	uint64_t **out = found, self = (uintptr_t)find_own;

	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		uint64_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, end = start + info->dlpi_phdr[i].p_memsz;

		if (info->dlpi_phdr[i].p_type == PT_LOAD && self >= start && self < end) {
			const ElfW(Phdr) *last = &info->dlpi_phdr[i];

			for (int k = i; k < info->dlpi_phnum; k++)
				if (info->dlpi_phdr[k].p_type == PT_LOAD)
					last = &info->dlpi_phdr[k];
			*out[0] = pm_page_down(info->dlpi_addr);
			*out[1] = pm_page_up(info->dlpi_addr + last->p_vaddr + last->p_memsz);
			return 1;
		}
	}
	return 0;
}

/* The library's own variables; its neighbours in memory can't be told from them by /proc/self/maps. */
bool pm_is_own(uint64_t start, uint64_t end)
{
	static uint64_t own_start, own_end;

	if (!own_end)
		dl_iterate_phdr(find_own, (uint64_t *[]){ &own_start, &own_end });
	return (start < own_end && end > own_start) || pm_link_owns(start, end) || pm_marks_own(start, end);
}

static void after_fork_child(void)
{
	pm_marks_forked();
	pm_gate_reset();
	pm_table_forked();
	pm_uffd_forked();
	pm_mounts_forked();
	pm_locks_forked_child();
	pm_link_forked();
}

static void set_up(const char *path, bool preloaded)
{
	static _Atomic bool done;

	pm_link_configure(path, getenv("PAGEMERGE_DOMAIN"), preloaded);
	pm_is_own(0, 0); /* looks for itself now: later, the loader may be busy with somebody who waits for us */
	if (!atomic_exchange(&done, true))
		pthread_atfork(pm_locks_fork, pm_locks_forked, after_fork_child);
}

__attribute__((constructor)) static void preload(void)
{
	const char *path = getenv("PAGEMERGE_AGENT_SOCKET"), *all = getenv("PAGEMERGE_ALL"), *list = getenv("LD_PRELOAD");
	const char *connect = getenv("PAGEMERGE_CONNECT");

	if (!path || !list || !strstr(list, "libpagemerge-agent") || getauxval(AT_SECURE))
		return;
	set_up(path, true);
	if (all && strcmp(all, "1") == 0)
		pm_calls_merge_any(true);
	else if (connect && strcmp(connect, "1") == 0)
		pm_link_start(); /* nothing is marked: others may ask for that later */
}

static void leave_out(uint64_t start, uint64_t end)
{
	pm_marks_set(start, end, PM_MARK_EXCLUDED);
}

PM_API int pm_agent_start(const char *socket_path)
{
	if (getauxval(AT_SECURE)) /* its environment, and so the socket's path, is another user's */
		return -EPERM;
	if (!pm_link_configured()) {
		set_up(socket_path, false);
		pm_hooks_install();
		pm_vma_each_special(leave_out); /* what was asked for before the hooks were there */
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
