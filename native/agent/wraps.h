/* SPDX-License-Identifier: MIT */
/* What the wrappers of libc's functions share. */
#ifndef PM_WRAPS_H
#define PM_WRAPS_H

#include <dlfcn.h>
#include <stdint.h>

/* Preloaded, libc comes after us; loaded later, it came before, and our names are not global. */
static inline void *pm_find_real(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	return found ? found : dlsym(RTLD_DEFAULT, name);
}

/* libc's own function; found once. Cancellation and errno are thereby libc's business. */
#define REAL(name)                                                      \
	static __typeof__(&name) real;                                  \
	if (!real)                                                      \
		real = (__typeof__(&name))(uintptr_t)pm_find_real(#name)

#endif
