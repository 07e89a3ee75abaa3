/* SPDX-License-Identifier: MIT */
#define PM_VARIANT pm_hash_avx512
#define PM_VARIANT_NAME "avx512"
#include "hash_variant.h"
