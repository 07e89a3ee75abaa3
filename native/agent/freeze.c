/* SPDX-License-Identifier: MIT */
/*
 * Stopping the other threads of this process, from within.
 *
 * Each gets a queued signal 33, which glibc keeps for itself and therefore never lets a program block; ours is told from
 * glibc's by si_code and a cookie.  The handler counts itself in and sleeps on a futex until the epoch is over.  Nobody outside is
 * involved, so nothing is left undone when the daemon dies.
 */
#include "agent.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <ucontext.h>

enum { STOP_SIGNAL = 33, PARKED_MAX = 4096, STACK_BELOW = 16 * 4096, STACK_ABOVE = 4 * 4096, RSEQ_BYTES = 256 };

struct kernel_sigaction {
	void (*handler)(int, siginfo_t *, void *);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};

static _Atomic uint32_t epoch;           /* odd: stopped; also the futex that the stopped wait on */
static _Atomic uint64_t arrivals;        /* epoch << 32 | threads that have arrived */
static _Atomic uint32_t arrived_futex;
static _Atomic uint32_t awaited; /* so many arrivals */
static struct {
	_Atomic uint64_t who; /* epoch << 32 | tid: one that comes late from an earlier stop is not taken for a stopped one */
	_Atomic uint64_t sp, tp;
} parked[PARKED_MAX];
static uint64_t own_sp, own_tp; /* of the thread that stops the others */
static int signalled[PARKED_MAX];
static uint32_t signalled_count;
static struct kernel_sigaction former;
_Thread_local volatile unsigned int pm_freeze_interrupted;

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

#if defined(__x86_64__)
/* No stack is touched while waiting: the page the stack is on may be the one that is replaced. */
static inline long wait_raw(_Atomic uint32_t *word, uint32_t value)
{
	long result;
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	register long r9 __asm__("r9") = 0;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(SYS_futex), "D"(word), "S"(FUTEX_WAIT | FUTEX_PRIVATE_FLAG), "d"(value), "r"(r10), "r"(r8),
			   "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
static inline long wait_raw(_Atomic uint32_t *word, uint32_t value)
{
	register long x8 __asm__("x8") = SYS_futex;
	register long x0 __asm__("x0") = (long)word;
	register long x1 __asm__("x1") = FUTEX_WAIT | FUTEX_PRIVATE_FLAG;
	register long x2 __asm__("x2") = value;
	register long x3 __asm__("x3") = 0;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "pagemerge knows x86-64 and aarch64"
#endif

/* True when the stop, and nothing else, ended a system call with EINTR. */
static bool only_stop_ended_call(const ucontext_t *context)
{
	uint64_t pending = 0, blocked;
#if defined(__x86_64__)
	const unsigned char *pc = (const unsigned char *)context->uc_mcontext.gregs[REG_RIP];

	if (context->uc_mcontext.gregs[REG_RAX] != -EINTR || pc[-2] != 0x0f || pc[-1] != 0x05)
		return false;
#else
	const uint32_t *pc = (const uint32_t *)context->uc_mcontext.pc;

	if ((int64_t)context->uc_mcontext.regs[0] != -EINTR || pc[-1] != 0xd4000001u)
		return false;
#endif
	syscall(SYS_rt_sigpending, &pending, sizeof(pending));
	memcpy(&blocked, &context->uc_sigmask, sizeof(blocked));
	blocked |= 1ULL << (STOP_SIGNAL - 1); /* the next stop may be on its way */
	return (pending & ~blocked) == 0;
}

/* Be counted in; false when that stop is over already. */
static inline __attribute__((always_inline)) bool arrive(uint32_t mine)
{
	uint64_t seen = atomic_load(&arrivals);
	uint32_t slot;

	do {
		if (seen >> 32 != mine || (uint32_t)seen >= PARKED_MAX)
			return false;
	} while (!atomic_compare_exchange_weak(&arrivals, &seen, seen + 1));
	slot = (uint32_t)seen;
	atomic_store(&parked[slot].sp, (uint64_t)__builtin_frame_address(0));
	atomic_store(&parked[slot].tp, (uint64_t)__builtin_thread_pointer());
	atomic_store(&parked[slot].who, (uint64_t)mine << 32 | (uint32_t)syscall(SYS_gettid));
	atomic_fetch_add(&arrived_futex, 1);
	if (slot + 1 >= atomic_load(&awaited)) /* the last; waking it for each would cost more than all else here */
		futex(&arrived_futex, FUTEX_WAKE, 1, NULL);
	return true;
}

static void handler(int number, siginfo_t *info, void *context)
{
	int saved = errno;
	uint32_t mine = (uint32_t)info->si_value.sival_int;

	if (info->si_code != SI_QUEUE || info->si_pid != getpid()) {
		if ((uintptr_t)former.handler > 1)
			former.handler(number, info, context);
		errno = saved;
		return;
	}
	if (arrive(mine))
		while (atomic_load_explicit(&epoch, memory_order_acquire) == mine)
			wait_raw(&epoch, mine);
	if (only_stop_ended_call(context)) /* asked last: signals of the program's own may have come meanwhile */
		pm_freeze_interrupted++;
	errno = saved;
}

#if defined(__x86_64__)
__asm__(".text\n.type pm_restorer,@function\npm_restorer:\n mov $15,%eax\n syscall\n");
extern void pm_restorer(void);
#endif

/* glibc installs its own handler for 33 when a program first calls setuid(2) and the like: look each time. */
static int install(void)
{
	struct kernel_sigaction now, ours = { .handler = handler, .mask = ~0ULL };

	if (syscall(SYS_rt_sigaction, STOP_SIGNAL, NULL, &now, sizeof(now.mask)))
		return -errno;
	if (now.handler == handler)
		return 0;
	former = now;
	ours.flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
#if defined(__x86_64__)
	ours.flags |= 0x04000000; /* SA_RESTORER */
	ours.restorer = pm_restorer;
#endif
	return syscall(SYS_rt_sigaction, STOP_SIGNAL, &ours, NULL, sizeof(ours.mask)) ? -errno : 0;
}

/* Among the first `count` that arrived in this stop. */
static bool is_parked(int tid, uint32_t number, uint32_t count)
{
	for (uint32_t i = 0; i < count && i < PARKED_MAX; i++)
		if (atomic_load(&parked[i].who) == ((uint64_t)number << 32 | (uint32_t)tid))
			return true;
	return false;
}

static bool was_signalled(int tid)
{
	for (uint32_t i = 0; i < signalled_count; i++)
		if (signalled[i] == tid)
			return true;
	return false;
}

static int signal_thread(int tid, uint32_t number)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_int = (int)number;
	if (signalled_count == PARKED_MAX)
		return -EMFILE;
	if (syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, STOP_SIGNAL, &info))
		return errno == ESRCH ? 0 : -errno;
	signalled[signalled_count++] = tid;
	return 0;
}

/* The first thread, when it has exited and others go on: it stays listed. */
static bool is_dead(int tid)
{
	char path[64], text[256];
	int n, fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false; /* just gone: the list was not whole, perhaps */
	n = (int)read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = 0;
	const char *end = strrchr(text, ')');
	return end && end[2] == 'Z';
}

struct chase {
	int self, missing, listed;
	uint32_t number, before; /* arrived before the list was read */
	bool look_closely;
};

static int chase_one(const char *name, void *context)
{
	struct chase *chase = context;
	int tid = atoi(name);

	if (tid <= 0)
		return 0;
	chase->listed++;
	if (tid == chase->self || is_parked(tid, chase->number, chase->before) ||
	    (chase->look_closely && is_dead(tid)))
		return 0;
	chase->missing++;
	return was_signalled(tid) ? 0 : signal_thread(tid, chase->number);
}

/*
 * Signal every thread that has not arrived; the number of those still missing, or -errno.  Arrived means: before the list was read.  One that arrives
 * while it is read may have made a thread just before, which is not in it.
 *
 * And the kernel ends the list early, without a word, where it comes upon a thread that is just exiting.  So there must be as many names as there are threads, which
 * the folder's count of links tells: those that have arrived make no more of them.
 */
static int chase_all(int dir, int self, uint32_t number, bool look_closely)
{
	struct chase chase = { .self = self, .number = number, .look_closely = look_closely,
			       .before = (uint32_t)atomic_load(&arrivals) };
	int error = pm_dir_each(dir, chase_one, &chase);
	struct stat status;

	if (error || chase.missing)
		return error ? error : chase.missing;
	if (fstat(dir, &status))
		return -errno;
	return (long)status.st_nlink != 2 + chase.listed;
}

static uint64_t now_usecs(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Until all that were signalled have arrived, or nothing happens any more. */
static void wait_for_arrivals(void)
{
	atomic_store(&awaited, signalled_count);
	for (;;) {
		uint32_t seen = atomic_load(&arrived_futex);

		if ((uint32_t)atomic_load(&arrivals) >= signalled_count)
			return;
		if (futex(&arrived_futex, FUTEX_WAIT, seen, &(struct timespec){ .tv_nsec = 50000 }) && errno == ETIMEDOUT &&
		    atomic_load(&arrived_futex) == seen)
			return;
	}
}

uint32_t pm_freeze_threads(void)
{
	return signalled_count;
}

/* Stop all other threads: 0, or -ETIMEDOUT (one did not come; none is stopped any more) or another -errno. */
int pm_freeze_begin(unsigned int timeout_usecs)
{
	int self = (int)syscall(SYS_gettid), dir, missing, error = install();
	uint64_t deadline = now_usecs() + timeout_usecs;
	uint32_t number;

	if (error)
		return error;
	dir = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	number = atomic_load(&epoch) + 1;
	signalled_count = 0;
	atomic_store(&awaited, UINT32_MAX);
	own_sp = (uint64_t)__builtin_frame_address(0);
	own_tp = (uint64_t)__builtin_thread_pointer();
	atomic_store(&arrivals, (uint64_t)number << 32);
	atomic_store(&epoch, number);
	for (unsigned int turn = 0;; turn++) {
		missing = chase_all(dir, self, number, turn > 20);
		if (missing <= 0)
			break;
		if (now_usecs() >= deadline + signalled_count * (uint64_t)PM_FREEZE_USECS_A_THREAD) {
			missing = -ETIMEDOUT;
			break;
		}
		wait_for_arrivals();
	}
	close(dir);
	if (missing < 0) {
		pm_freeze_end();
		return missing;
	}
	return 0;
}

void pm_freeze_end(void)
{
	atomic_fetch_add(&epoch, 1);
	atomic_store(&arrivals, (uint64_t)atomic_load(&epoch) << 32 | 0xffffffffu);
	futex(&epoch, FUTEX_WAKE, INT32_MAX, NULL);
}

static bool is_near(uint64_t sp, uint64_t start, uint64_t end)
{
	sp = pm_page_down(sp);
	return start < sp + STACK_ABOVE && end > sp - STACK_BELOW;
}

/* Where the C library has the kernel note on which CPU a thread runs, from the thread's pointer on; glibc 2.35 and later say it. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));

static bool holds_rseq(uint64_t tp, uint64_t start, uint64_t end)
{
	if (!&__rseq_offset || !&__rseq_size || !__rseq_size) /* a library of the program's may have its own, in a thread's variables */
		return start < tp + PM_PAGE_SIZE && end > tp - STACK_BELOW;
	return start < tp + (uint64_t)__rseq_offset + RSEQ_BYTES && end > tp + (uint64_t)__rseq_offset;
}

/* What goes on being written: the stack of a stopped thread or of the caller, and what the kernel writes for them. */
bool pm_freeze_holds_stack(uint64_t start, uint64_t end)
{
	uint32_t count = (uint32_t)atomic_load(&arrivals);

	for (uint32_t i = 0; i < count && i < PARKED_MAX; i++)
		if (is_near(atomic_load(&parked[i].sp), start, end) || holds_rseq(atomic_load(&parked[i].tp), start, end))
			return true;
	return is_near(own_sp, start, end) || holds_rseq(own_tp, start, end);
}
