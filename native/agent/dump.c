/* SPDX-License-Identifier: MIT */
/*
 * Core dumps.  The kernel leaves private mappings of files out of them by default, and merged memory is just that: without this a dump would lack what was merged,
 * which the program knows as its own.
 */
#include "replace.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

enum { ANONYMOUS_PRIVATE = 1 << 0, MAPPED_PRIVATE = 1 << 2 }; /* core(5) */

/* Have private mappings of files dumped where anonymous memory is.  Forks and programs that are executed inherit it. */
void pm_dump_merged(void)
{
	static bool done;
	char text[32];
	int fd;
	ssize_t n;

	if (done)
		return;
	done = true;
	fd = open("/proc/self/coredump_filter", O_RDWR | O_CLOEXEC);
	if (fd < 0) /* not there where the kernel knows no dumps, not ours where the process may not be dumped */
		return;
	n = read(fd, text, sizeof(text) - 1);
	if (n > 0) {
		text[n] = 0;
		unsigned long filter = strtoul(text, NULL, 16);

		if (filter & ANONYMOUS_PRIVATE && !(filter & MAPPED_PRIVATE)) {
			n = snprintf(text, sizeof(text), "0x%lx", filter | MAPPED_PRIVATE);
			done = pwrite(fd, text, (size_t)n, 0) == n;
		}
	}
	close(fd);
}
