/* SPDX-License-Identifier: MIT */
/*
 * x86-64. A thread that is interrupted in a system call is in the kernel's signal code, with -ERESTART... in rax; the
 * kernel decides there, by rax and orig_rax, how the call goes on. So orig_rax is -1 during our calls; afterwards all
 * registers are put back, and the thread is led through the signal code once more (a second PTRACE_INTERRUPT), where its
 * own call is restarted, with the time that was left to it.
 */
#ifdef __x86_64__
#include "inject_impl.h"

#include <errno.h>
#include <linux/audit.h>
#include <sys/syscall.h>

enum { CS_64BIT = 0x33, FLAG_TRAP = 0x100 };

const unsigned char pm_arch_code[] = {0x0f, 0x05}; /* syscall */
const size_t pm_arch_code_len = sizeof(pm_arch_code), pm_arch_code_align = 1;
const uint32_t pm_arch_audit = AUDIT_ARCH_X86_64;

bool pm_arch_is_64bit(const struct user_regs_struct *regs, size_t len)
{
	return len == sizeof(*regs) && regs->cs == CS_64BIT;
}

uint64_t pm_arch_ip(const struct user_regs_struct *regs)
{
	return regs->rip;
}

bool pm_arch_in_user_code(const struct user_regs_struct *regs)
{
	return (int64_t)regs->orig_rax < 0;
}

int pm_arch_begin(struct pm_target *target)
{
	struct user_regs_struct *regs = &target->saved;
	const uint64_t args[6] = {regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9};
	bool has_limit = true;

	if ((int64_t)regs->orig_rax < 0)
		return 0;
	/* It would see EINTR, and no handler has run. A handler yet to run makes EINTR of this, too. */
	if ((int64_t)regs->rax == -EINTR && pm_ends_with_eintr((long)regs->orig_rax, args, &has_limit) && !has_limit)
		regs->rax = (unsigned long long)-PM_ERESTARTNOHAND;
	/* Better a sleep that begins anew than a thread that is killed. */
	if ((int64_t)regs->rax == -PM_ERESTART_RESTARTBLOCK && target->filtered &&
	    !pm_filters_allow(target->tid, SYS_restart_syscall, regs->rip, args))
		regs->rax = (unsigned long long)-PM_ERESTARTNOHAND;
	return 0;
}

int pm_arch_set_call(const struct pm_target *target, const struct pm_call *call)
{
	struct user_regs_struct regs = target->saved;

	regs.rip = target->instruction;
	regs.rax = (unsigned long long)call->number;
	regs.orig_rax = (unsigned long long)-1;
	regs.eflags &= ~(unsigned long long)FLAG_TRAP;
	regs.rdi = call->args[0];
	regs.rsi = call->args[1];
	regs.rdx = call->args[2];
	regs.r10 = call->args[3];
	regs.r8 = call->args[4];
	regs.r9 = call->args[5];
	return pm_registers_write(target->tid, &regs);
}

int64_t pm_arch_result(const struct user_regs_struct *regs)
{
	return (int64_t)regs->rax;
}

int pm_arch_end(struct pm_target *target)
{
	int err = pm_registers_write(target->tid, &target->saved);

	/* each stop may cost it its CPU: none where there is no call to restart */
	return err || pm_arch_in_user_code(&target->saved) ? err : pm_step_to_event(target);
}
#else
typedef int pm_not_x86_64; /* C11 knows no empty file */
#endif
