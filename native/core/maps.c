/* SPDX-License-Identifier: MIT */
#include "maps.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool number(const char **at, const char *end, unsigned int base, char stop, uint64_t *out)
{
	const char *p = *at;
	uint64_t value = 0;

	for (; p < end && *p != stop; p++) {
		unsigned int digit;

		if (*p >= '0' && *p <= '9')
			digit = (unsigned int)(*p - '0');
		else if (base == 16 && *p >= 'a' && *p <= 'f')
			digit = (unsigned int)(*p - 'a') + 10;
		else
			return false;
		if (value > (UINT64_MAX - digit) / base)
			return false;
		value = value * base + digit;
	}
	if (p == *at || p == end)
		return false;
	*at = p + 1;
	*out = value;
	return true;
}

int pm_map_parse(const char *line, size_t length, struct pm_map *out)
{
	const char *at = line, *end = line + length;
	uint64_t major, minor;

	if (!number(&at, end, 16, '-', &out->start) || !number(&at, end, 16, ' ', &out->end))
		return -EINVAL;
	if (end - at < 5 || at[4] != ' ')
		return -EINVAL;
	memcpy(out->perms, at, 4);
	at += 5;
	if (!number(&at, end, 16, ' ', &out->offset) || !number(&at, end, 16, ':', &major) ||
	    !number(&at, end, 16, ' ', &minor))
		return -EINVAL;
	/* The inode is followed by blanks, even where no path comes. */
	if (!number(&at, end, 10, ' ', &out->inode) || out->end < out->start)
		return -EINVAL;
	while (at < end && *at == ' ')
		at++;
	out->major = (uint32_t)major;
	out->minor = (uint32_t)minor;
	out->path = at;
	out->path_length = (size_t)(end - at);
	return 0;
}

static int append(struct pm_maps *out, const struct pm_map *map)
{
	if (out->count == out->cap) {
		size_t cap = out->cap ? out->cap * 2 : 64;
		struct pm_map *grown = realloc(out->maps, cap * sizeof(*grown));

		if (!grown)
			return -ENOMEM;
		out->maps = grown;
		out->cap = cap;
	}
	out->maps[out->count++] = *map;
	return 0;
}

int pm_maps_parse(const char *text, size_t length, struct pm_maps *out)
{
	const char *at = text, *end = text + length;

	out->count = 0;
	while (at < end) {
		const char *stop = memchr(at, '\n', (size_t)(end - at));
		size_t line = (size_t)((stop ? stop : end) - at);
		struct pm_map map;
		int err;

		err = pm_map_parse(at, line, &map);
		if (!err)
			err = append(out, &map);
		if (err)
			return err;
		at += line + 1;
	}
	return 0;
}

int pm_maps_read(int fd, struct pm_maps *out)
{
	size_t length = 0;

	for (;;) {
		ssize_t n;

		if (out->text_size - length < 16384) {
			size_t size = out->text_size ? out->text_size * 2 : 65536;
			char *grown = realloc(out->text, size);

			if (!grown)
				return -ENOMEM;
			out->text = grown;
			out->text_size = size;
		}
		n = pread(fd, out->text + length, out->text_size - length, (off_t)length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		length += (size_t)n;
	}
	if (length == 0) /* a descriptor outlives its memory: after exec or exit it reads as empty */
		return -ESRCH;
	return pm_maps_parse(out->text, length, out);
}

void pm_maps_deinit(struct pm_maps *maps)
{
	free(maps->text);
	free(maps->maps);
	memset(maps, 0, sizeof(*maps));
}
