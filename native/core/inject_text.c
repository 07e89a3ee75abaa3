/* SPDX-License-Identifier: MIT */
/*
 * A system call instruction that the target has in its text, so that nothing of it is written to. The vDSO's is taken
 * where it can be: no other thread unmaps that one meanwhile.
 */
#include "inject_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

enum { SEARCH_BYTES = 1 << 20 };

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
	return err == -ENOMEM ? err : err ? -ENOENT : 0;
}

int pm_find_instruction(pid_t pid, pid_t tid, uint64_t *address)
{
	char path[64], *line = NULL;
	size_t size = 0;
	int err = -ENOENT;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/maps", (int)pid, (int)tid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOENT ? -ESRCH : -errno;
	while (getline(&line, &size, maps) > 0) {
		bool vdso = strstr(line, "[vdso]");
		unsigned long long start, end;
		uint64_t found;
		char perms[5];

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
	return err;
}
