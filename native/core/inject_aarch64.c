/* SPDX-License-Identifier: MIT */
/*
 * aarch64. When an interrupted thread stops, the kernel has already put its registers back to before the call, and keeps
 * to itself that a sleep is to be gone on with by restart_syscall(2). So a thread that stands before `svc #0` is led
 * into its call first, where x8 tells; that call is skipped, ours are made, and at the end it is let into its own again.
 * There it is let go: a signal that came meanwhile then interrupts the call as it would have.
 */
#ifdef __aarch64__
#include "inject_impl.h"

#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum {
	PSTATE_BTYPE = 3 << 10, /* set after an indirect branch: it must then land on a mark */
	REGSET_SVE = 0x405,
	REGSET_SSVE = 0x40b,
	VECTORS_MAX = 64 * 1024,
	VECTORS_LONG = 1, /* SVE_PT_REGS_SVE */
	SVC_BYTES = 4,
};

/* asm/ptrace.h's user_sve_header, which clashes with sys/user.h */
struct vectors_header {
	uint32_t size, max_size;
	uint16_t vl, max_vl, flags, reserved;
};

const unsigned char pm_arch_code[] = {0x01, 0x00, 0x00, 0xd4}; /* svc #0 */
const size_t pm_arch_code_len = sizeof(pm_arch_code), pm_arch_code_align = 4;
const uint32_t pm_arch_audit = AUDIT_ARCH_AARCH64;

bool pm_arch_is_64bit(const struct user_regs_struct *regs, size_t len)
{
	return len == sizeof(*regs);
}

uint64_t pm_arch_ip(const struct user_regs_struct *regs)
{
	return regs->pc;
}

bool pm_arch_in_user_code(const struct user_regs_struct *regs)
{
	(void)regs; /* can't be told; a sequence that it is not in does no harm */
	return true;
}

/* The call that the thread is in; -1: none, it is neither made nor restarted. */
static int set_call_number(pid_t tid, int number)
{
	struct iovec iov = {&number, sizeof(number)};

	return ptrace(PTRACE_SETREGSET, tid, NT_ARM_SYSTEM_CALL, &iov) < 0 ? -errno : 0;
}

/* SVE's registers beyond 128 bits, and streaming mode, which any system call ends. */
static int save_vectors(struct pm_target *target)
{
	static const int kinds[] = {REGSET_SSVE, REGSET_SVE};
	struct vectors_header header;

	target->vectors = malloc(VECTORS_MAX);
	if (!target->vectors)
		return -ENOMEM;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct iovec iov = {target->vectors, VECTORS_MAX};

		if (ptrace(PTRACE_GETREGSET, target->tid, kinds[i], &iov) < 0 || iov.iov_len <= sizeof(header))
			continue;
		memcpy(&header, target->vectors, sizeof(header));
		if (header.flags & VECTORS_LONG) {
			target->vectors_kind = kinds[i];
			target->vectors_len = iov.iov_len;
			return 0;
		}
	}
	return 0;
}

static int restore_vectors(struct pm_target *target)
{
	struct iovec iov = {target->vectors, target->vectors_len};

	if (!target->vectors_len)
		return 0;
	return ptrace(PTRACE_SETREGSET, target->tid, target->vectors_kind, &iov) < 0 ? -errno : 0;
}

/* Into its own call, and out of it without its having been made. */
static int skip_own_call(struct pm_target *target)
{
	struct user_regs_struct before = target->saved;
	int err = pm_step_to_call(target, true);

	if (!err)
		err = pm_registers_read(target->tid, &target->saved);
	if (err)
		return err;
	target->in_call = true;
	target->instruction = before.pc;
	target->saved.pc = before.pc;
	target->saved.regs[7] = before.regs[7]; /* tells entry from exit, in these stops */
	/* Better a sleep that begins anew than a thread that is killed. */
	if (target->saved.regs[8] == SYS_restart_syscall && before.regs[8] != SYS_restart_syscall && target->filtered) {
		uint64_t args[6];

		for (int i = 0; i < 6; i++)
			args[i] = target->saved.regs[i];
		if (!pm_filters_allow(target->tid, SYS_restart_syscall, before.pc + SVC_BYTES, args))
			target->saved.regs[8] = before.regs[8];
	}
	err = set_call_number(target->tid, -1);
	return err ? err : pm_step_to_call(target, false);
}

int pm_arch_begin(struct pm_target *target)
{
	if (pm_is_instruction(target->tid, target->saved.pc))
		return skip_own_call(target);
	return save_vectors(target);
}

int pm_arch_set_call(const struct pm_target *target, const struct pm_call *call)
{
	struct user_regs_struct regs = target->saved;

	regs.pc = target->instruction;
	regs.pstate &= ~(unsigned long long)PSTATE_BTYPE;
	for (int i = 0; i < 6; i++)
		regs.regs[i] = call->args[i];
	regs.regs[8] = (unsigned long long)call->number;
	return pm_registers_write(target->tid, &regs);
}

int64_t pm_arch_result(const struct user_regs_struct *regs)
{
	return (int64_t)regs->regs[0];
}

int pm_arch_end(struct pm_target *target)
{
	int err = pm_registers_write(target->tid, &target->saved);

	if (!err)
		err = set_call_number(target->tid, -1);
	if (!err)
		err = restore_vectors(target);
	if (!err && target->in_call) {
		err = pm_step_to_call(target, true);
		if (err == -EBUSY) /* its cgroup was frozen just now; it stands before its call */
			err = 0;
	}
	free(target->vectors);
	target->vectors = NULL;
	return err;
}
#else
typedef int pm_not_aarch64; /* C11 knows no empty file */
#endif
