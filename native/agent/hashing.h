/* SPDX-License-Identifier: MIT */
#ifndef PM_HASHING_H
#define PM_HASHING_H

#include "agent.h"

/* XXH3-64 of each page of the ranges, 0 where it could not be read: how many pages.  `hashes` has room for all of them. */
uint32_t pm_hash_ranges(const struct pm_range *ranges, uint32_t count, uint64_t *hashes);

#endif
