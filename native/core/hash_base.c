/* SPDX-License-Identifier: MIT */
#define PM_VARIANT pm_hash_base
#define PM_VARIANT_NAME "base"
#include "hash_variant.h"
