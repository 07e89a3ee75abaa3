/* SPDX-License-Identifier: MIT */
/* What the program asked for, and which of its mappings the agent has seen come about. */
#ifndef PM_MARKS_H
#define PM_MARKS_H

#include "agent.h"

void pm_marks_set(uint64_t start, uint64_t end, uint32_t kind); /* enum pm_mark; tells the daemon */
void pm_marks_set_all(bool on);
bool pm_marks_all(void);
bool pm_marks_any(void);
uint32_t pm_marks_kind(uint64_t addr); /* 0: none */
bool pm_marks_wanted(uint64_t start, uint64_t end); /* all of it may be merged */
bool pm_marks_sealed(uint64_t start, uint64_t end);

/* These take no lock: to be called as often as munmap(2) is, and in signal handlers. */
void pm_marks_gone(uint64_t start, uint64_t end);	/* unmapped or mapped anew; tells PM_GONE */
void pm_marks_discarded(uint64_t start, uint64_t end);	/* tells PM_GONE_DISCARDED */
/* Private anonymous mappings made by a call that the agent saw: their unmapping it will see, too. */
void pm_marks_saw(uint64_t start, uint64_t end);
bool pm_marks_seen(uint64_t start, uint64_t end);

/* For the agent's thread: what is to be told to the daemon, in order. */
struct pm_note {
	uint32_t type; /* PM_MARK, PM_ALL or PM_GONE */
	struct pm_range range;
};
void pm_marks_listen(bool on); /* from now on notes are kept; those of before are forgotten */
uint32_t pm_marks_notes(struct pm_note *notes, uint32_t most); /* take the next; how many */
bool pm_marks_missed(void); /* there were more than are kept: everything has to be told anew */
void pm_marks_each(void (*see)(const struct pm_range *ranges, uint32_t count)); /* all marks, as they are now */
bool pm_marks_idle(void); /* the agent's thread will sleep, and is to be woken for a note; false: there are some */

bool pm_marks_own(uint64_t start, uint64_t end); /* the lists themselves */
void pm_marks_lock(void);			 /* around fork(2) */
void pm_marks_unlock(void);
void pm_marks_forked(void); /* in the child, with the lock held: the other threads' unfinished calls never were */

#endif
