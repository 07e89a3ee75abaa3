/* SPDX-License-Identifier: MIT */
#define PM_VARIANT pm_hash_avx2
#define PM_VARIANT_NAME "avx2"
#include "hash_variant.h"
