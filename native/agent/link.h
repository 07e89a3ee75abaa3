/* SPDX-License-Identifier: MIT */
#ifndef PM_LINK_H
#define PM_LINK_H

#include "agent.h"

void pm_link_configure(const char *socket_path, const char *domain, bool preloaded);
bool pm_link_configured(void);
bool pm_link_connected(void);
int pm_link_start(void); /* the thread, once; 0 or -errno */
void pm_link_forked(void);
enum pm_refusal {
	PM_REFUSE_LOCKED = 1, /* mlockall(2) */
	PM_REFUSE_CLONE = 2,  /* another process runs in this memory, whose threads we don't see */
};
void pm_link_refuse(uint32_t why, bool on);
bool pm_link_owns(uint64_t start, uint64_t end); /* the thread's stack and buffers */
void pm_link_tell_waiting(uint32_t type, const struct pm_range *ranges, uint32_t count); /* the agent's thread only */
void pm_link_tell(uint32_t type, const struct pm_range *ranges, uint32_t count);

#endif
