/* SPDX-License-Identifier: MIT */
/* Why a process can't be merged, or not by every barrier. */
#ifndef PM_REFUSAL_H
#define PM_REFUSAL_H

#include "agent.h"

enum pm_refusal {
	PM_REFUSE_LOCKED = 1, /* mlockall(2) */
	PM_REFUSE_CLONE = 2,  /* another process runs in this memory, whose threads we don't see */
	PM_REFUSE_EXCHANGE = 4, /* it writes to other processes by process_vm_writev(2), as those probably do to it */
};

struct pm_finding {
	char refusal[PM_DOMAIN_MAX]; /* "" or why nothing may be merged */
	long vmas;		     /* mappings of this process */
	bool direct;		     /* pages may be written without a fault by calls under way: only a stop ends those */
};

void pm_refuse(uint32_t why, bool on); /* enum pm_refusal */
/* Look at the program's descriptors and mappings; `own` are descriptors of ours that are no sign of anything. */
void pm_refusal_find(struct pm_finding *finding, const int *own, uint32_t count);
/* Whether descriptors have come since that may be a reason: asked when writers are held off, before anything is mapped. */
bool pm_refusal_stale(void);
void pm_refusal_forget(void); /* at a request's end */

/* mounts.c: whether read(2) from a file copies, or may have others write to the reader's pages */
void pm_mounts_begin(void); /* before a number of looks */
bool pm_mount_copies(uint32_t id); /* as in /proc/PID/fdinfo and mountinfo */
bool pm_file_copies(int fd); /* a descriptor of the caller's */
void pm_mounts_forked(void);

/* opens.c: what was opened that matters here; and writes to memory under way that need no fault of a page that they have found writable before */
uint32_t pm_opens_direct(void);
bool pm_opens_exchanges(void); /* the program has called process_vm_readv(2) or process_vm_writev(2) */
bool pm_writes_under_way(void);
void pm_opens_received(void); /* descriptors came by a message */
void pm_opens_watch(bool on); /* a request is under way: what is opened is looked at more closely */
bool pm_refusal_harmless(const char *path);

#endif
