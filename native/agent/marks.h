/* SPDX-License-Identifier: MIT */
/* What the program asked for, and which of its mappings the agent has seen come about. */
#ifndef PM_MARKS_H
#define PM_MARKS_H

#include "agent.h"

void pm_marks_set(uint64_t start, uint64_t end, uint32_t kind); /* enum pm_mark; tells the daemon */
void pm_marks_gone(uint64_t start, uint64_t end);		/* unmapped or mapped anew; tells PM_GONE */
void pm_marks_set_all(bool on);
bool pm_marks_all(void);
bool pm_marks_any(void);
uint32_t pm_marks_kind(uint64_t addr); /* 0: none */
bool pm_marks_wanted(uint64_t start, uint64_t end); /* all of it may be merged */
bool pm_marks_sealed(uint64_t start, uint64_t end);
void pm_marks_tell(void); /* all of them, to a daemon that has just been greeted */

/* Private anonymous mappings made by a call that the agent saw: their unmapping it will see, too. */
void pm_marks_saw(uint64_t start, uint64_t end);
bool pm_marks_seen(uint64_t start, uint64_t end);

bool pm_marks_own(uint64_t start, uint64_t end); /* the lists themselves */
void pm_marks_lock(void);			 /* around fork(2) */
void pm_marks_unlock(void);

#endif
