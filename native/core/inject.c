/* SPDX-License-Identifier: MIT */
/*
 * One thread is enough: madvise() and prctl() act on the whole address space, and a thread that is not stopped notices
 * nothing. The call is made with a `syscall` instruction that the target has in its text; nothing of it is written to.
 *
 * A thread that is interrupted in a system call is in the kernel's signal code, with -ERESTART... in rax; the kernel
 * decides there, by rax and orig_rax, how the call goes on. So orig_rax is -1 during our calls; afterwards all registers
 * are put back, and the thread is led through the signal code once more (a second PTRACE_INTERRUPT), where its own call
 * is restarted, with the time that was left to it.
 *
 * When the tracer ends, the kernel detaches, and the thread would run on with the registers of our call: the tracer is
 * a thread with all signals blocked, and only SIGKILL between the first PTRACE_SETREGSET and the last can do that.
 */
#include "inject.h"

#include <errno.h>

#ifdef __x86_64__
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	CS_64BIT = 0x33,
	STOP_WAIT_MS = 200, /* a thread in uninterruptible sleep does not stop; another is tried then */
	RSEQ_TRIES = 100,
	SEARCH_BYTES = 1 << 20,
	KERNEL_ERESTARTSYS = 512, /* not for user space, hence not in errno.h */
	KERNEL_ERESTART_RESTARTBLOCK = 516,
};

/* linux/ptrace.h clashes with sys/ptrace.h */
struct rseq_configuration {
	uint64_t address;
	uint32_t size, signature, flags, pad;
};

struct rseq_section {
	uint32_t version, flags;
	uint64_t start_ip, length, abort_ip;
};
_Static_assert(sizeof(struct rseq_section) == 32, "struct rseq_cs");

enum { GET_RSEQ_CONFIGURATION = 0x420f };

struct job {
	pid_t pid;
	struct pm_call *calls;
	size_t count;
	uint64_t *stopped_ns;
	uint64_t instruction;
	int err;
};

struct target {
	pid_t tid;
	struct user_regs_struct saved;
	uint64_t mask;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int read_memory(pid_t pid, uint64_t address, void *buf, size_t len)
{
	struct iovec here = {buf, len}, there = {(void *)(uintptr_t)address, len};
	ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);

	if (got < 0)
		return -errno;
	return (size_t)got == len ? 0 : -EFAULT;
}

/* The address of a `syscall` instruction (0f 05) in what the process may execute. */
static int find_instruction(pid_t pid, uint64_t *address)
{
	static const unsigned char code[] = {0x0f, 0x05};
	char path[64], *line = NULL;
	size_t size = 0;
	int err = -ENOENT;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "re");
	if (!maps)
		return errno == ENOENT ? -ESRCH : -errno;
	while (err == -ENOENT && getline(&line, &size, maps) > 0) {
		unsigned long long start, end;
		char perms[5], *text;
		size_t length;
		void *found;

		if (sscanf(line, "%llx-%llx %4s", &start, &end, perms) != 3 || perms[0] != 'r' || perms[2] != 'x' ||
		    strstr(line, "[vsyscall]"))
			continue;
		length = end - start < SEARCH_BYTES ? (size_t)(end - start) : (size_t)SEARCH_BYTES;
		text = malloc(length);
		if (!text) {
			err = -ENOMEM;
			break;
		}
		if (read_memory(pid, start, text, length) == 0) {
			found = memmem(text, length, code, sizeof(code));
			if (found) {
				*address = start + (uint64_t)((char *)found - text);
				err = 0;
			}
		}
		free(text);
	}
	free(line);
	fclose(maps);
	return err;
}

/* Whether a seccomp filter watches the thread's calls. */
static bool has_seccomp(pid_t pid, pid_t tid)
{
	char path[96], line[128];
	bool found = false;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)pid, (int)tid);
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status))
		if (strncmp(line, "Seccomp:", 8) == 0)
			found = atoi(line + 8) != 0;
	if (status)
		fclose(status);
	return found;
}

/* Wait for the next stop; limit_ms 0: for ever. */
static int wait_stop(pid_t tid, int *status, int limit_ms)
{
	uint64_t end = now_ns() + (uint64_t)limit_ms * 1000000u;

	for (;;) {
		pid_t got = waitpid(tid, status, __WALL | (limit_ms ? WNOHANG : 0));

		if (got == tid)
			return WIFSTOPPED(*status) ? 0 : -ESRCH;
		if (got < 0 && errno != EINTR)
			return errno == ECHILD ? -ESRCH : -errno;
		if (got == 0) {
			if (now_ns() > end)
				return -EBUSY;
			nanosleep(&(struct timespec){.tv_nsec = 5000}, NULL);
		}
	}
}

static bool is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

/* The signal of a stop that is to be handed on; none where the stop is the tracing's own. */
static uintptr_t signal_of(int status)
{
	int sig = WSTOPSIG(status);

	return is_event_stop(status) || sig == (SIGTRAP | 0x80) ? 0 : (uintptr_t)sig;
}

/* Lead the thread into PTRACE_EVENT_STOP; signals that come first take effect. */
static int interrupt(pid_t tid, int limit_ms)
{
	int status, err;

	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) < 0)
		return -errno;
	for (;;) {
		err = wait_stop(tid, &status, limit_ms);
		if (err || is_event_stop(status))
			return err;
		if (ptrace(PTRACE_CONT, tid, 0, signal_of(status)) < 0)
			return -errno;
	}
}

static int read_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = {regs, sizeof(*regs)};

	if (ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov) < 0)
		return -errno;
	return iov.iov_len == sizeof(*regs) && regs->cs == CS_64BIT ? 0 : -ENOEXEC;
}

static int write_registers(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = {regs, sizeof(*regs)};

	return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov) < 0 ? -errno : 0;
}

/*
 * Whether it stands in a restartable sequence. The kernel would forget the sequence when the thread is elsewhere, and
 * then not abort it when the thread is back but on another CPU.
 */
static bool in_rseq(pid_t tid, uint64_t ip)
{
	struct rseq_configuration config;
	struct rseq_section section;
	uint64_t pointer = 0;

	if (ptrace((enum __ptrace_request)GET_RSEQ_CONFIGURATION, tid, sizeof(config), &config) < 0 || !config.address)
		return false;
	if (read_memory(tid, config.address + 8, &pointer, sizeof(pointer)) < 0 || !pointer)
		return false;
	if (read_memory(tid, pointer, &section, sizeof(section)) < 0)
		return false;
	return ip - section.start_ip < section.length;
}

/* Stop it where its registers may be borrowed, with its signals blocked. */
static int stop(struct target *target)
{
	uint64_t all = ~(uint64_t)0;
	int err;

	for (int i = 0; i < RSEQ_TRIES; i++) {
		err = interrupt(target->tid, STOP_WAIT_MS);
		if (!err)
			err = read_registers(target->tid, &target->saved);
		if (err)
			return err;
		if ((int64_t)target->saved.orig_rax >= 0 || !in_rseq(target->tid, target->saved.rip)) {
			if (ptrace(PTRACE_GETSIGMASK, target->tid, sizeof(all), &target->mask) < 0 ||
			    ptrace(PTRACE_SETSIGMASK, target->tid, sizeof(all), &all) < 0)
				return -errno;
			return 0;
		}
		if (ptrace(PTRACE_CONT, target->tid, 0, 0) < 0)
			return -errno;
	}
	return -EBUSY;
}

/* Go on to the next entry to or exit from a system call. */
static int step(pid_t tid)
{
	uintptr_t sig = 0;
	int status, err;

	do {
		if (ptrace(PTRACE_SYSCALL, tid, 0, sig) < 0)
			return -errno;
		err = wait_stop(tid, &status, 0);
		if (err)
			return err;
		sig = signal_of(status); /* only SIGSTOP is not blocked */
	} while (WSTOPSIG(status) != (SIGTRAP | 0x80));
	return 0;
}

static int make_call(const struct target *target, uint64_t instruction, struct pm_call *call)
{
	struct user_regs_struct regs = target->saved;
	int err;

	regs.rip = instruction;
	regs.rax = (unsigned long long)call->number;
	regs.orig_rax = (unsigned long long)-1;
	regs.rdi = call->args[0];
	regs.rsi = call->args[1];
	regs.rdx = call->args[2];
	regs.r10 = call->args[3];
	regs.r8 = call->args[4];
	regs.r9 = call->args[5];
	do {
		err = write_registers(target->tid, &regs);
		if (!err)
			err = step(target->tid); /* in */
		if (!err)
			err = step(target->tid); /* out */
		if (!err) {
			struct user_regs_struct after;

			err = read_registers(target->tid, &after);
			call->result = (int64_t)after.rax;
		}
	} while (!err && call->result <= -KERNEL_ERESTARTSYS && call->result >= -KERNEL_ERESTART_RESTARTBLOCK);
	return err;
}

/* Put everything back, and let the kernel restart the call that the thread was in. */
static int restore(struct target *target)
{
	int err = write_registers(target->tid, &target->saved);

	if (err)
		return err;
	if (ptrace(PTRACE_INTERRUPT, target->tid, 0, 0) < 0 || ptrace(PTRACE_CONT, target->tid, 0, 0) < 0)
		return -errno;
	for (;;) {
		int status;

		err = wait_stop(target->tid, &status, 0);
		if (err)
			return err;
		if (is_event_stop(status))
			break;
		if (ptrace(PTRACE_CONT, target->tid, 0, signal_of(status)) < 0)
			return -errno;
	}
	if (ptrace(PTRACE_SETSIGMASK, target->tid, sizeof(target->mask), &target->mask) < 0)
		return -errno;
	return 0;
}

static int inject_into(struct job *job, pid_t tid)
{
	uintptr_t options = PTRACE_O_TRACESYSGOOD;
	struct target target = {.tid = tid};
	uint64_t begin;
	int err, back;

	if (has_seccomp(job->pid, tid))
		options |= PTRACE_O_SUSPEND_SECCOMP;
	if (ptrace(PTRACE_SEIZE, tid, 0, options) < 0) {
		if (!(options & PTRACE_O_SUSPEND_SECCOMP))
			return -errno;
		return errno == ESRCH ? -ESRCH : -EOPNOTSUPP;
	}
	begin = now_ns();
	err = stop(&target);
	if (!err) {
		for (size_t i = 0; !err && i < job->count; i++)
			err = make_call(&target, job->instruction, &job->calls[i]);
		back = err == -ESRCH ? 0 : restore(&target);
		if (!err)
			err = back;
	}
	/* where it is not stopped, the end of this thread detaches */
	ptrace(PTRACE_DETACH, tid, 0, 0);
	*job->stopped_ns = now_ns() - begin;
	return err;
}

static void *run_job(void *arg)
{
	struct job *job = arg;
	struct dirent *entry;
	char path[64];
	DIR *dir;

	job->err = find_instruction(job->pid, &job->instruction);
	if (job->err)
		return NULL;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)job->pid);
	dir = opendir(path);
	job->err = dir ? -ESRCH : errno == ENOENT ? -ESRCH : -errno;
	while (dir && (entry = readdir(dir))) {
		pid_t tid = (pid_t)atoi(entry->d_name);

		if (tid <= 0)
			continue;
		job->err = inject_into(job, tid);
		if (job->err != -EBUSY && job->err != -ESRCH)
			break;
	}
	if (dir)
		closedir(dir);
	return NULL;
}

int pm_inject(pid_t pid, struct pm_call *calls, size_t count, uint64_t *stopped_ns)
{
	struct job job = {.pid = pid, .calls = calls, .count = count, .stopped_ns = stopped_ns};
	sigset_t all, old;
	pthread_t thread;
	int err;

	*stopped_ns = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* inherited by the tracer */
	err = pthread_create(&thread, NULL, run_job, &job);
	if (!err)
		pthread_join(thread, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return err ? -err : job.err;
}
#else
int pm_inject(pid_t pid, struct pm_call *calls, size_t count, uint64_t *stopped_ns)
{
	(void)pid, (void)calls, (void)count;
	*stopped_ns = 0;
	return -EOPNOTSUPP;
}
#endif
