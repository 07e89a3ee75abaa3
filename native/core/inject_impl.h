/* SPDX-License-Identifier: MIT */
/* What the files of pm_inject() share; docs/explanation/requests.md tells why it is done so. */
#ifndef PM_INJECT_IMPL_H
#define PM_INJECT_IMPL_H

#include "inject.h"

#include <stdbool.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>

/* Results by which the kernel tells itself to restart a call; not for user space, hence not in errno.h. */
enum {
	PM_ERESTARTSYS = 512,
	PM_ERESTARTNOHAND = 514,
	PM_ERESTART_RESTARTBLOCK = 516,
};

struct pm_job {
	pid_t pid;
	struct pm_call *calls;
	size_t count;
	uint64_t *stopped_ns;
	uint64_t deadline_ns; /* by then a thread must have been found that can be stopped */
	bool own_process;     /* the tracer is a process of its own, so its SIGCHLD is free to use */
	int err;
};

struct pm_target {
	const struct pm_job *job;
	pid_t tid;
	struct user_regs_struct saved; /* as they are to be at the end */
	uint64_t mask;                 /* its blocked signals */
	uint64_t instruction;          /* the address of a system call instruction in its text */
	bool filtered;                 /* by seccomp, which is suspended while we trace */
	bool runs;                     /* before it was told to stop, it had or wanted a CPU */
	bool goes_first;               /* as a real-time thread, for as long as it is borrowed */
	int policy;                    /* its own, if so */
	bool in_call;                  /* aarch64: its own call is entered anew at the end */
	void *vectors;                 /* aarch64: what a system call discards */
	size_t vectors_len;
	int vectors_kind;
};

/* inject_step.c: the tracing itself */
uint64_t pm_inject_clock(void); /* CLOCK_MONOTONIC, ns */
int pm_inject_into(const struct pm_job *job, pid_t tid);
int pm_registers_read(pid_t tid, struct user_regs_struct *regs);
int pm_registers_write(pid_t tid, const struct user_regs_struct *regs);
/* Lead it into PTRACE_EVENT_STOP, from a stop. */
int pm_step_to_event(const struct pm_target *target);
/* Go on to the entry to a system call, or to the exit from it; -EBUSY: it does not get there, and has been stopped. */
int pm_step_to_call(const struct pm_target *target, bool entry);

/* inject_text.c */
int pm_read_memory(pid_t tid, uint64_t address, void *buf, size_t len);
/* The address of an instruction that calls the system, in what the process may execute; -ENOENT: none. */
int pm_find_instruction(pid_t pid, pid_t tid, uint64_t *address);
bool pm_is_instruction(pid_t tid, uint64_t address);

/* inject_filter.c: whether the thread's seccomp filters let it make this call. It is stopped. */
bool pm_filters_allow(pid_t tid, long number, uint64_t ip, const uint64_t args[6]);

/* inject_wait.c: how it waits */
enum pm_wait {
	PM_WAIT_SLEEPS,    /* goes on as if nothing had been */
	PM_WAIT_RUNS,      /* it has work to do, from which it is kept */
	PM_WAIT_TIMED,     /* in a call that ends with EINTR when the thread is stopped */
	PM_WAIT_STOPPED,   /* by a signal */
	PM_WAIT_UNINTERRUPTIBLE,
	PM_WAIT_DEAD,
	PM_WAIT_KINDS,
};
enum pm_wait pm_wait_of(pid_t pid, pid_t tid);
/* It ends with EINTR when the thread is stopped although no handler runs, and it has no time limit. */
bool pm_ends_with_eintr(long number, const uint64_t args[6], bool *has_limit);

/* inject_x86_64.c, inject_aarch64.c */
extern const unsigned char pm_arch_code[];
extern const size_t pm_arch_code_len, pm_arch_code_align;
extern const uint32_t pm_arch_audit; /* AUDIT_ARCH_... */
bool pm_arch_is_64bit(const struct user_regs_struct *regs, size_t len);
uint64_t pm_arch_ip(const struct user_regs_struct *regs);
/* Whether the registers, in PTRACE_EVENT_STOP, may be those of user code. */
bool pm_arch_in_user_code(const struct user_regs_struct *regs);
/* From PTRACE_EVENT_STOP, all signals blocked: make it ready for calls. After an error it only needs to be let go. */
int pm_arch_begin(struct pm_target *target);
int pm_arch_set_call(const struct pm_target *target, const struct pm_call *call);
int64_t pm_arch_result(const struct user_regs_struct *regs);
/* Put everything back; the thread is in a stop from which its own call goes on, but for its signals. */
int pm_arch_end(struct pm_target *target);

#endif
