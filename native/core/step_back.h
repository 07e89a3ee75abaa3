/* SPDX-License-Identifier: MIT */
/* A thread that works in the background lets others go first.  There is one in a process: the daemon's, or the agent's. */
#ifndef PM_STEP_BACK_H
#define PM_STEP_BACK_H

#include <stdbool.h>

/*
 * The calling thread gets ksmd's nice value, or keeps a higher one.  `further`: and asks for a longer slice than others have (2.8 ms at most): whoever wakes up with a shorter one
 * need not wait for the end of ours (Linux 6.12 and later), for milliseconds, where all CPUs scan or merge.  It may cost a twentieth of the work.  Not much longer, as one that is kept
 * from running may wait that long, and a program with it.  A thread with a policy of its own keeps that.  0 or -errno.
 */
int pm_step_back(bool further);

/*
 * While it has stepped back further: let whoever waits for this CPU have it now.  Called often, between two pieces of work, while nobody waits for the caller; now and then it is a
 * sched_yield(2).  Without it, one whose turn was not yet come as it woke up waits for the timer's next tick, up to 4 ms.
 */
void pm_give_way(void);

#endif
