/* SPDX-License-Identifier: MIT */
/* System calls made by another process, at our request. */
#ifndef PM_INJECT_H
#define PM_INJECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct pm_call {
	long number;
	uint64_t args[6];
	int64_t result; /* what the kernel returned: 0, or -errno */
};

/*
 * Have one thread of process pid make the calls, in one stop; its other threads go on. Returns 0 when all were made:
 * their results are in `calls`, how long the thread stood still at most in *stopped_ns (one that was running: since it was
 * seen to have stopped). Otherwise -errno, and the target is as it was: ESRCH (gone), EPERM (not permitted, or traced by
 * another), ENOEXEC (not a 64-bit program), EOPNOTSUPP (this architecture; or a seccomp filter that can't be suspended),
 * ENOENT (no system call instruction found), EBUSY (no thread could be stopped, or went on to make the call), EINTR (what
 * traced it was killed). No signal to this process ends it half-way, not even SIGKILL.
 */
int pm_inject(pid_t pid, struct pm_call *calls, size_t count, uint64_t *stopped_ns);

#endif
