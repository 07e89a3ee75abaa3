/* SPDX-License-Identifier: MIT */
#ifndef PM_PATCH_H
#define PM_PATCH_H

#include "agent.h"

struct pm_hook {
	const char *name;
	void *ours;
};

/* Point every loaded object's slots at the hooks; NULL, 0: the same hooks again, for objects that have come since. */
void pm_patch_all(const struct pm_hook *hooks, size_t count);

#endif
