/* SPDX-License-Identifier: MIT */
/* Why a process can't be merged, or not by every barrier. */
#ifndef PM_REFUSAL_H
#define PM_REFUSAL_H

#include "agent.h"

enum pm_refusal {
	PM_REFUSE_LOCKED = 1, /* mlockall(2) */
	PM_REFUSE_CLONE = 2,  /* another process runs in this memory, whose threads we don't see */
};

struct pm_finding {
	char refusal[PM_DOMAIN_MAX]; /* "" or why nothing may be merged */
	long vmas;		     /* mappings of this process */
	bool direct;		     /* pages may be written without a fault by calls under way: only a stop ends those */
};

void pm_refuse(uint32_t why, bool on); /* enum pm_refusal */
/* Look at the program's descriptors and mappings; `own` are descriptors of ours that are no sign of anything. */
void pm_refusal_find(struct pm_finding *finding, const int *own, uint32_t count);

#endif
