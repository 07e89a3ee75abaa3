/* SPDX-License-Identifier: MIT */
/* /proc/PID/maps: its text, as entries. */
#ifndef PM_MAPS_H
#define PM_MAPS_H

#include <stddef.h>
#include <stdint.h>

struct pm_map {
	uint64_t start; /* bytes */
	uint64_t end;   /* exclusive */
	uint64_t offset;
	uint64_t inode;
	uint32_t major;
	uint32_t minor;
	char perms[4];    /* "rw-p" */
	const char *path; /* in the text that was parsed; not terminated */
	size_t path_length;
};

struct pm_maps {
	char *text;
	size_t text_size;
	struct pm_map *maps;
	size_t count;
	size_t cap;
};

/* Parse one line of `length` bytes, without its newline.  0, or -EINVAL. */
int pm_map_parse(const char *line, size_t length, struct pm_map *out);

/* Parse a whole text into `out` (which keeps no copy of it: the text has to live on).  0, -EINVAL or -ENOMEM. */
int pm_maps_parse(const char *text, size_t length, struct pm_maps *out);

/* Read and parse the file `fd`, an open /proc/PID/maps.  0, -ESRCH when the process has no memory any more, -errno. */
int pm_maps_read(int fd, struct pm_maps *out);

void pm_maps_deinit(struct pm_maps *maps);

#endif
