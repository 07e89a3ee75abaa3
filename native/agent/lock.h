/* SPDX-License-Identifier: MIT */
/* Locks that a program's signal handlers may meet, and errands for the agent's thread. */
#ifndef PM_LOCK_H
#define PM_LOCK_H

#include "agent.h"

struct pm_lock {
	_Atomic uint32_t word; /* 0 free, 1 held, 2 held and waited for */
	uint64_t mask;	       /* the holder's signals as they were before */
};

/* The holder's signals wait until it unlocks: a handler that came in between could meet the lock that its own thread holds. */
void pm_lock(struct pm_lock *lock);
void pm_unlock(struct pm_lock *lock);

enum { PM_WAKE_SIGNAL = 32 }; /* glibc keeps it for pthread_cancel of the very thread that it is sent to; nobody cancels the agent's */

void pm_agent_is_coming(void); /* before the thread is made */
void pm_agent_is_gone(void);   /* it could not be made */
void pm_agent_is_here(void); /* this thread is it; its signals are blocked */
bool pm_agent_is_me(void);
void pm_agent_wake(void);

void pm_replace_lock_agent(void); /* the same lock, for the agent's thread: errands of a holder are run meanwhile */
bool pm_errand_serve(void);	  /* the agent's thread: whether there was one */
/* Run `work` in the agent's thread, whose descriptors the program does not see; here when there is none.  With the replacing lock held. */
void pm_errand(void (*work)(void *argument), void *argument);

void pm_locks_fork(void); /* before fork(2), in the thread that forks: it holds all locks from now on */
void pm_locks_forked(void); /* after it, in the parent */
void pm_locks_forked_child(void);

#endif
