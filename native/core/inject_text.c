/* SPDX-License-Identifier: MIT */
/*
 * A system call instruction that the target has in its text, so that nothing of it is written to. The vDSO's is taken
 * where it can be: no other thread unmaps that one meanwhile.
 */
#include "inject_impl.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SEARCH_BYTES = 1 << 20 };

/* PROCMAP_QUERY of linux/fs.h, Linux 6.11 */
struct map_query {
	uint64_t size, query_flags, address, start, end, flags, page_size, offset, inode;
	uint32_t major, minor, name_size, build_id_size;
	uint64_t name, build_id;
};
static const unsigned long QUERY = _IOWR('f', 17, struct map_query);
static const uint64_t READABLE = 1, EXECUTABLE = 4;

int pm_read_memory(pid_t tid, uint64_t address, void *buf, size_t len)
{
	struct iovec here = {buf, len}, there = {(void *)(uintptr_t)address, len};
	ssize_t got = process_vm_readv(tid, &here, 1, &there, 1, 0);

	if (got < 0)
		return -errno;
	return (size_t)got == len ? 0 : -EFAULT;
}

bool pm_is_instruction(pid_t tid, uint64_t address)
{
	unsigned char code[8];

	return pm_read_memory(tid, address, code, pm_arch_code_len) == 0 &&
	       memcmp(code, pm_arch_code, pm_arch_code_len) == 0;
}

static int search(pid_t tid, uint64_t start, size_t length, uint64_t *address)
{
	unsigned char *text = malloc(length), *at = text;
	int err;

	if (!text)
		return -ENOMEM;
	err = pm_read_memory(tid, start, text, length);
	while (!err) {
		at = memmem(at, length - (size_t)(at - text), pm_arch_code, pm_arch_code_len);
		if (!at) {
			err = -ENOENT;
		} else if ((start + (size_t)(at - text)) % pm_arch_code_align) {
			at++;
		} else {
			*address = start + (size_t)(at - text);
			break;
		}
	}
	free(text);
	return err == -EFAULT || err == -EIO ? -ENOENT : err;
}

static int open_file(pid_t pid, pid_t tid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", (int)pid, (int)tid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Where the program was told that the vDSO is; 0: nowhere. */
static uint64_t vdso_of(pid_t pid, pid_t tid)
{
	uint64_t auxv[2 * 64] = {0};
	int fd = open_file(pid, tid, "auxv");
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, auxv, sizeof(auxv));
	close(fd);
	for (size_t i = 0; n > 0 && i + 1 < (size_t)n / sizeof(*auxv); i += 2)
		if (auxv[i] == AT_SYSINFO_EHDR)
			return auxv[i + 1];
	return 0;
}

/* The vDSO's, without reading through all mappings, of which there may be many; -ENOENT: it is not there any more. */
static int find_quickly(pid_t pid, pid_t tid, uint64_t *address)
{
	char name[16] = "";
	struct map_query query = {
		.size = sizeof(query),
		.address = vdso_of(pid, tid),
		.name = (uintptr_t)name,
		.name_size = sizeof(name),
	};
	int fd = query.address ? open_file(pid, tid, "maps") : -1, err;

	if (fd < 0)
		return -ENOENT;
	err = ioctl(fd, QUERY, &query);
	close(fd);
	if (err < 0 || strcmp(name, "[vdso]") != 0 || !(query.flags & READABLE) || !(query.flags & EXECUTABLE) ||
	    query.end - query.start > SEARCH_BYTES)
		return -ENOENT;
	return search(tid, query.start, (size_t)(query.end - query.start), address);
}

int pm_find_instruction(pid_t pid, pid_t tid, uint64_t *address)
{
	char path[64], *line = NULL;
	bool mapped = false;
	size_t size = 0;
	int err = find_quickly(pid, tid, address);
	FILE *maps;

	if (err != -ENOENT)
		return err;
	snprintf(path, sizeof(path), "/proc/%d/task/%d/maps", (int)pid, (int)tid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOENT ? -ESRCH : -errno;
	while (getline(&line, &size, maps) > 0) {
		bool vdso = strstr(line, "[vdso]");
		unsigned long long start, end;
		uint64_t found;
		char perms[5];

		mapped = true;
		if (sscanf(line, "%llx-%llx %4s", &start, &end, perms) != 3 || perms[0] != 'r' || perms[2] != 'x' ||
		    strstr(line, "[vsyscall]") || (err == 0 && !vdso))
			continue;
		if (end - start > SEARCH_BYTES)
			end = start + SEARCH_BYTES;
		if (search(tid, start, (size_t)(end - start), &found) == 0) {
			*address = found;
			err = 0;
		}
		if (vdso)
			break;
	}
	free(line);
	fclose(maps);
	return mapped ? err : -ESRCH;
}
