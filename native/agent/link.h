/* SPDX-License-Identifier: MIT */
#ifndef PM_LINK_H
#define PM_LINK_H

#include "agent.h"

void pm_link_configure(const char *socket_path, const char *domain, bool preloaded);
bool pm_link_configured(void);
bool pm_link_connected(void);
int pm_link_start(void); /* the thread, once; 0 or -errno */
void pm_link_forked(void);
bool pm_link_owns(uint64_t start, uint64_t end); /* the thread's stack and buffers */

#endif
