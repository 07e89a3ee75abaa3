/* SPDX-License-Identifier: MIT */
#ifndef PM_HASHING_H
#define PM_HASHING_H

#include "agent.h"

/* The key of each page of the ranges (pm_page_key), 0 where it could not be read: how many pages.  `keys` has room for all of them. */
uint32_t pm_hash_ranges(const struct pm_range *ranges, uint32_t count, uint64_t *keys);

#endif
