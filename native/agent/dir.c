/* SPDX-License-Identifier: MIT */
#include "agent.h"

struct kernel_dirent {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* Show every name in a directory to `see` until it gives other than 0: that, or 0 at the end, or -errno. Needs no malloc. */
int pm_dir_each(int dir, int (*see)(const char *name, void *context), void *context)
{
	char buffer[8192] __attribute__((aligned(8)));
	long n;

	if (lseek(dir, 0, SEEK_SET) < 0)
		return -errno;
	while ((n = syscall(SYS_getdents64, dir, buffer, sizeof(buffer))) > 0)
		for (long at = 0; at < n;) {
			const struct kernel_dirent *entry = (const void *)(buffer + at);
			int result = see(entry->name, context);

			if (result)
				return result;
			at += entry->reclen;
		}
	return n < 0 ? -errno : 0;
}
