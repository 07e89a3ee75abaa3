/* SPDX-License-Identifier: MIT */
/* One thread, traced: stopped, made to call, put back, let go. */
#include "inject_impl.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	STOP_WAIT_MS = 200, /* a thread that is in uninterruptible sleep then does not stop; another is tried */
	ENTRY_WAIT_MS = 3000, /* one whose cgroup is frozen does not go on */
	RSEQ_TRIES = 100,
	INSTRUCTION_TRIES = 3,
	LOOK_AGAIN_NS = 50 * 1000 * 1000,
	POLL_QUICKLY_NS = 10 * 1000 * 1000,
};

/* linux/ptrace.h clashes with sys/ptrace.h */
enum {
	SET_DISPATCH = 0x4210,
	GET_DISPATCH = 0x4211,
	GET_RSEQ_CONFIGURATION = 0x420f,
};

struct dispatch {
	uint64_t mode, selector, offset, length;
};

struct rseq_configuration {
	uint64_t address;
	uint32_t size, signature, flags, pad;
};

struct rseq_section {
	uint32_t version, flags;
	uint64_t start_ip, length, abort_ip;
};
_Static_assert(sizeof(struct rseq_section) == 32, "struct rseq_cs");

uint64_t pm_inject_clock(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Until something may have stopped. */
static void wait_child(const struct pm_job *job, uint64_t waited_ns)
{
	long ns = waited_ns < POLL_QUICKLY_NS ? 5000 : 1000000;
	sigset_t child;

	if (!job->own_process) { /* SIGCHLD is the program's */
		nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
		return;
	}
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigtimedwait(&child, NULL, &(struct timespec){.tv_nsec = LOOK_AGAIN_NS});
}

/*
 * Wait for the next stop; limit_ms 0: for ever. Not in waitpid(): it would not notice that a thread has started another
 * program, and so has another number.
 */
static int wait_stop(const struct pm_job *job, pid_t tid, int *status, unsigned int limit_ms)
{
	uint64_t begin = pm_inject_clock();

	for (;;) {
		pid_t got = waitpid(tid, status, __WALL | WNOHANG);
		uint64_t waited;

		if (got == tid)
			return WIFSTOPPED(*status) ? 0 : -ESRCH;
		if (got < 0 && errno != EINTR)
			return errno == ECHILD ? -ESRCH : -errno;
		waited = pm_inject_clock() - begin;
		if (got == 0 && limit_ms && waited >= (uint64_t)limit_ms * 1000000u)
			return -EBUSY;
		if (got == 0)
			wait_child(job, waited);
	}
}

static bool is_event_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP;
}

static bool is_call_stop(int status)
{
	return WSTOPSIG(status) == (SIGTRAP | 0x80);
}

/* The signal of a stop that is to be handed on; none where the stop is the tracing's own. */
static uintptr_t signal_of(int status)
{
	return is_event_stop(status) || is_call_stop(status) ? 0 : (uintptr_t)WSTOPSIG(status);
}

/* Until PTRACE_EVENT_STOP; signals that come first take effect. */
static int wait_event(const struct pm_job *job, pid_t tid, unsigned int limit_ms)
{
	int status, err;

	for (;;) {
		err = wait_stop(job, tid, &status, limit_ms);
		if (err || is_event_stop(status))
			return err;
		if (ptrace(PTRACE_CONT, tid, 0, signal_of(status)) < 0)
			return -errno;
	}
}

int pm_step_to_event(const struct pm_target *target)
{
	if (ptrace(PTRACE_INTERRUPT, target->tid, 0, 0) < 0 || ptrace(PTRACE_CONT, target->tid, 0, 0) < 0)
		return -errno;
	return wait_event(target->job, target->tid, 0);
}

int pm_step_to_call(const struct pm_target *target, bool entry)
{
	uintptr_t sig = 0;
	int status, err;

	for (;;) {
		if (ptrace(PTRACE_SYSCALL, target->tid, 0, sig) < 0)
			return -errno;
		err = wait_stop(target->job, target->tid, &status, entry ? ENTRY_WAIT_MS : 0);
		if (err == -EBUSY) {
			if (ptrace(PTRACE_INTERRUPT, target->tid, 0, 0) < 0)
				return -errno;
			err = wait_stop(target->job, target->tid, &status, 0);
			if (!err && is_event_stop(status))
				return -EBUSY;
		}
		if (err || is_call_stop(status))
			return err;
		sig = signal_of(status); /* only SIGSTOP is not blocked */
	}
}

int pm_registers_read(pid_t tid, struct user_regs_struct *regs)
{
	struct iovec iov = {regs, sizeof(*regs)};

	if (ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov) < 0)
		return -errno;
	return pm_arch_is_64bit(regs, iov.iov_len) ? 0 : -ENOEXEC;
}

int pm_registers_write(pid_t tid, const struct user_regs_struct *regs)
{
	struct iovec iov = {(void *)(uintptr_t)regs, sizeof(*regs)};

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
	if (pm_read_memory(tid, config.address + 8, &pointer, sizeof(pointer)) < 0 || !pointer)
		return false;
	if (pm_read_memory(tid, pointer, &section, sizeof(section)) < 0)
		return false;
	return ip - section.start_ip < section.length;
}

/* Whether seccomp watches the thread's calls; from its status file. */
static bool has_seccomp(int fd)
{
	char text[4096];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	const char *line;

	text[n > 0 ? n : 0] = 0;
	line = strstr(text, "\nSeccomp:");
	return line && atoi(line + strlen("\nSeccomp:")) != 0;
}

/*
 * Each of our steps needs a CPU, for which it would wait behind all that compute, its own siblings among them. So it goes
 * first while it is borrowed: from when it is told to stop until it is let go, in which no code of its own runs. Not
 * without the privilege, nor where it goes first anyhow. Its nice value is kept.
 */
static void go_first(struct pm_target *target)
{
	int policy = sched_getscheduler(target->tid), plain = policy & ~SCHED_RESET_ON_FORK;
	struct sched_param first = {.sched_priority = 1};

	if (target->goes_first || (plain != SCHED_OTHER && plain != SCHED_BATCH && plain != SCHED_IDLE))
		return;
	target->policy = policy;
	target->goes_first = sched_setscheduler(target->tid, SCHED_FIFO | SCHED_RESET_ON_FORK, &first) == 0;
}

static void go_as_before(struct pm_target *target)
{
	/* unless somebody has set another policy meanwhile */
	if (target->goes_first && sched_getscheduler(target->tid) == (SCHED_FIFO | SCHED_RESET_ON_FORK))
		sched_setscheduler(target->tid, target->policy, &(struct sched_param){0});
	target->goes_first = false;
}

/* Stop it where its registers may be borrowed, with its signals blocked. */
static int stop(struct pm_target *target)
{
	uint64_t all = ~(uint64_t)0;
	int err;

	for (int i = 0; i < RSEQ_TRIES; i++) {
		if (ptrace(PTRACE_INTERRUPT, target->tid, 0, 0) < 0)
			return -errno;
		if (!target->runs) /* one that runs may be making a process, which would go first, too */
			go_first(target);
		do { /* on a busy machine it may take a while until it gets a CPU */
			err = wait_event(target->job, target->tid, STOP_WAIT_MS);
			if (err)
				go_as_before(target);
		} while (err == -EBUSY && pm_inject_clock() < target->job->deadline_ns &&
			 pm_wait_of(target->job->pid, target->tid) != PM_WAIT_UNINTERRUPTIBLE);
		if (!err)
			err = pm_registers_read(target->tid, &target->saved);
		if (err)
			return err;
		if (!pm_arch_in_user_code(&target->saved) || !in_rseq(target->tid, pm_arch_ip(&target->saved))) {
			if (ptrace(PTRACE_GETSIGMASK, target->tid, sizeof(all), &target->mask) < 0 ||
			    ptrace(PTRACE_SETSIGMASK, target->tid, sizeof(all), &all) < 0)
				return -errno;
			return 0;
		}
		go_as_before(target);
		if (ptrace(PTRACE_CONT, target->tid, 0, 0) < 0)
			return -errno;
	}
	return -EBUSY;
}

static int make_call(const struct pm_target *target, struct pm_call *call)
{
	struct user_regs_struct after;
	int err;

	do {
		err = pm_arch_set_call(target, call);
		if (!err)
			err = pm_step_to_call(target, true);
		if (!err)
			err = pm_step_to_call(target, false);
		if (!err)
			err = pm_registers_read(target->tid, &after);
		if (!err)
			call->result = pm_arch_result(&after);
	} while (!err && call->result <= -PM_ERESTARTSYS && call->result >= -PM_ERESTART_RESTARTBLOCK);
	return err;
}

/* It has been stopped; the calls, and its state as it was. */
static int borrow(struct pm_target *target)
{
	struct dispatch dispatch = {0}, none = {0};
	bool dispatched;
	int err, back;

	if (!pm_is_instruction(target->tid, target->instruction)) { /* unmapped meanwhile, or another program by now */
		ptrace(PTRACE_SETSIGMASK, target->tid, sizeof(target->mask), &target->mask);
		return -EAGAIN;
	}
	/* Calls from outside its own text would be turned into SIGSYS: Wine's way of catching them. */
	dispatched = ptrace((enum __ptrace_request)GET_DISPATCH, target->tid, sizeof(dispatch), &dispatch) == 0 &&
		     dispatch.mode != 0;
	if (dispatched)
		ptrace((enum __ptrace_request)SET_DISPATCH, target->tid, sizeof(none), &none);
	err = pm_arch_begin(target);
	if (!err) {
		for (size_t i = 0; !err && i < target->job->count; i++)
			err = make_call(target, &target->job->calls[i]);
		back = err == -ESRCH ? 0 : pm_arch_end(target);
		if (!err)
			err = back;
	}
	if (dispatched)
		ptrace((enum __ptrace_request)SET_DISPATCH, target->tid, sizeof(dispatch), &dispatch);
	if (ptrace(PTRACE_SETSIGMASK, target->tid, sizeof(target->mask), &target->mask) < 0 && !err)
		err = -errno;
	return err;
}

static int trace(struct pm_target *target, int status_fd)
{
	uintptr_t options = PTRACE_O_TRACESYSGOOD, suspend = options | PTRACE_O_SUSPEND_SECCOMP;
	uint64_t begin;
	int err;

	target->filtered = has_seccomp(status_fd);
	if (ptrace(PTRACE_SEIZE, target->tid, 0, target->filtered ? suspend : options) < 0) {
		if (!target->filtered || errno == ESRCH)
			return -errno;
		/* who may trace it but not suspend its filter? */
		if (ptrace(PTRACE_SEIZE, target->tid, 0, options) < 0)
			return -errno;
		return -EOPNOTSUPP; /* it was not stopped; the end of the tracer lets it go */
	}
	target->runs = pm_wait_of(target->job->pid, target->tid) == PM_WAIT_RUNS;
	begin = pm_inject_clock();
	err = stop(target);
	if (!err) {
		if (target->runs) /* it went on, or waited for a CPU, which is not our doing */
			begin = pm_inject_clock();
		go_first(target);
	}
	if (!err && !target->filtered && has_seccomp(status_fd)) { /* it has just put itself under a filter */
		target->filtered = true;
		if (ptrace(PTRACE_SETOPTIONS, target->tid, 0, suspend) < 0) {
			err = -EOPNOTSUPP;
			ptrace(PTRACE_SETSIGMASK, target->tid, sizeof(target->mask), &target->mask);
		}
	}
	if (!err)
		err = borrow(target);
	go_as_before(target);
	/* where it has not stopped, the end of the tracer detaches */
	ptrace(PTRACE_DETACH, target->tid, 0, 0);
	*target->job->stopped_ns = pm_inject_clock() - begin;
	return err;
}

int pm_inject_into(const struct pm_job *job, pid_t tid)
{
	int status_fd, err = -EAGAIN;
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", (int)job->pid, (int)tid);
	status_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (status_fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	for (int i = 0; err == -EAGAIN && i < INSTRUCTION_TRIES; i++) {
		struct pm_target target = {.job = job, .tid = tid};

		err = pm_find_instruction(job->pid, tid, &target.instruction);
		if (!err)
			err = trace(&target, status_fd);
		free(target.vectors);
	}
	close(status_fd);
	return err == -EAGAIN ? -EBUSY : err;
}
