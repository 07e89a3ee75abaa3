/* SPDX-License-Identifier: MIT */
/* What the files of the agent share.  It lives in somebody else's process: small, quiet, never waiting for the daemon. */
#ifndef PM_AGENT_H
#define PM_AGENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"
#include "sys.h"

#define PM_API __attribute__((visibility("default")))

/* freeze.c: the other threads wait in a signal handler */
enum { PM_FREEZE_USECS_A_THREAD = 20 }; /* what a stop takes of the CPU, about */
int pm_freeze_begin(unsigned int timeout_usecs); /* 0, or -errno and nobody is stopped; the timeout grows with the threads */
void pm_freeze_end(void);
uint32_t pm_freeze_threads(void); /* that the last stop was for */
bool pm_freeze_holds_stack(uint64_t start, uint64_t end); /* while stopped */
extern _Thread_local volatile unsigned int pm_freeze_interrupted
	__attribute__((tls_model("initial-exec"))); /* stops that ended a system call of this thread */

/* uffd.c: writers of [start, end), in the kernel too, wait until it is released */
int pm_uffd_open(void);							/* a descriptor, or -errno */
int pm_uffd_protect(int fd, uint64_t start, uint64_t end, int tracker); /* 0 or -errno */
void pm_uffd_release(int fd, uint64_t start, uint64_t end);
bool pm_uffd_possible(void);
void pm_uffd_fill_begin(uint64_t start, uint64_t end);
void pm_uffd_fill(void *to, const void *from, size_t length);
void pm_uffd_fill_end(void);
void pm_uffd_forked(void);

/* gate.c: the agent's replacements against the program's own calls that change mappings */
int pm_gate_close(uint64_t start, uint64_t end); /* the agent: 0 or -EBUSY */
void pm_gate_open(void);
void pm_gate_enter(uint64_t start, uint64_t end); /* the program: before a call on [start, end) */
void pm_gate_leave(void);
uint32_t pm_gate_calls(void); /* how many there have been */
void pm_gate_reset(void);
bool pm_gate_busy(void);

/* vma.c */
struct pm_vma {
	uint64_t start, end, offset, inode;
	int prot; /* PROT_* */
	bool shared;
	bool anonymous; /* ordinary private memory: no file, no special mapping, not the stack */
	bool stack;
	bool pool;
};
int pm_vma_find(uint64_t addr, struct pm_vma *out); /* the mapping at or after addr: 0, or -ENOENT */
void pm_vma_each_special(void (*see)(uint64_t start, uint64_t end));
long pm_vma_count(const char **async);
void pm_vma_note(long more); /* mappings that we made since */
void pm_vma_begin(void); /* this thread: until pm_vma_end one descriptor serves many pm_vma_find */
void pm_vma_end(void);

/* dir.c */
int pm_dir_each(int dir, int (*see)(const char *name, void *context), void *context);

/* table.c: descriptors of the agent's thread alone */
bool pm_table_separate(void); /* this thread's from now on; false: they stay the program's */
bool pm_table_is_own(void);
void pm_table_forked(void);

/* agent.c */
bool pm_is_own(uint64_t start, uint64_t end); /* memory that the agent itself writes */

/* lock.c */
void pm_replace_lock(void);
void pm_replace_unlock(void);

/* The calls themselves: inside the agent libc's names are the interposed ones. */
static inline void *pm_mmap(void *at, size_t length, int prot, int flags, int fd, uint64_t offset)
{
	return (void *)syscall(SYS_mmap, at, length, prot, flags, fd, offset);
}

static inline int pm_munmap(void *at, size_t length)
{
	return (int)syscall(SYS_munmap, at, length);
}

static inline int pm_mprotect(void *at, size_t length, int prot)
{
	return (int)syscall(SYS_mprotect, at, length, prot);
}

static inline int pm_madvise(void *at, size_t length, int advice)
{
	return (int)syscall(SYS_madvise, at, length, advice);
}

/*
 * Wait for those who have found a page writable and are about to write to it under the kernel's lock of our mappings (ptrace(2), /proc/PID/mem): whoever
 * has that lock for himself has none of them beside him.  brk(2) takes it, and does nothing else when it is asked for nothing.
 */
static inline void pm_writers_pass(void)
{
	syscall(SYS_brk, 0);
}

/* Put the mapping `from` in the place of what is at `to`: 0, or -1 and errno. */
static inline int pm_move(void *from, size_t length, void *to)
{
	return syscall(SYS_mremap, from, length, length, 3 /* MAYMOVE | FIXED */, to) == -1 ? -1 : 0;
}

#endif
