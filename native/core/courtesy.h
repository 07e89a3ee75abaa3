/* SPDX-License-Identifier: MIT */
#ifndef PM_COURTESY_H
#define PM_COURTESY_H

/*
 * Have threads that wake up run before this one, whose share of the CPU stays what it is: its time slices become the longest ones, and whoever has a shorter one
 * does not wait for its end (Linux 6.12; before, it changes nothing).  Needs no privilege.
 */
void pm_let_others_first(void);

#endif
