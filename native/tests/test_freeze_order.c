/* SPDX-License-Identifier: MIT */
/*
 * What the freeze promises of memory: what a thread wrote before it stopped is seen by who stopped it, and what that one wrote, by the thread when it goes on; plain variables, no
 * atomics.  For ThreadSanitizer, under which signals can't come at any instant: it would be interrupted while it holds locks of its own, which who has stopped the others needs.  So the freeze's
 * own code runs with all its atomics, but its signal is put in a box, and each thread takes it out, and calls the handler, between two of its turns.  The box orders nothing (relaxed).
 */
#include <stdatomic.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long boxed_syscall(long number, ...);
static int counted_fstat(int fd, struct stat *status);

#define syscall boxed_syscall
#define fstat counted_fstat
#include "../agent/freeze.c"
#undef syscall
#undef fstat

#include <pthread.h>

enum { WORKERS = 4, ORDERED_STOPS = 300, WORDS = 64 };

#define CHECK(condition)                                                            \
	do {                                                                        \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                    \
		}                                                                   \
	} while (0)

static struct {
	_Atomic int tid;
	_Atomic uint32_t stop; /* the number of the stop that it is to come to */
} boxes[WORKERS];

static uint64_t words[WORKERS][WORDS]; /* written by the worker, and by who has stopped it */
static _Atomic bool over;

static long boxed_syscall(long number, ...)
{
	long a[6];
	va_list more;

	va_start(more, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(more, long);
	va_end(more);
	if (number == SYS_rt_sigaction)
		return 0;
	if (number != SYS_rt_tgsigqueueinfo)
		return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	for (int i = 0; i < WORKERS; i++)
		if (atomic_load_explicit(&boxes[i].tid, memory_order_relaxed) == (int)a[1])
			atomic_store_explicit(&boxes[i].stop, (uint32_t)((siginfo_t *)(uintptr_t)a[3])->si_value.sival_int, memory_order_relaxed);
	return 0;
}

/* The threads of the program: ThreadSanitizer has one of its own besides, that comes to no stop. */
int pm_dir_each(int dir, int (*see)(const char *name, void *context), void *context)
{
	(void)dir;
	for (int i = 0; i < WORKERS; i++) {
		char name[16];
		int result;

		snprintf(name, sizeof(name), "%d", atomic_load_explicit(&boxes[i].tid, memory_order_relaxed));
		result = see(name, context);
		if (result)
			return result;
	}
	return 0;
}

static int counted_fstat(int fd, struct stat *status)
{
	(void)fd;
	status->st_nlink = 2 + WORKERS;
	return 0;
}

static void come_to_stops(int self)
{
	uint32_t number = atomic_exchange_explicit(&boxes[self].stop, 0, memory_order_relaxed);
	static _Thread_local ucontext_t context; /* of no system call */
	siginfo_t info;

	if (!number)
		return;
	memset(&info, 0, sizeof(info));
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_value.sival_int = (int)number;
	handler(STOP_SIGNAL, &info, &context);
}

static void *work(void *argument)
{
	int self = (int)(intptr_t)argument;

	atomic_store_explicit(&boxes[self].tid, (int)syscall(SYS_gettid), memory_order_relaxed);
	for (uint64_t turn = 0; !atomic_load_explicit(&over, memory_order_relaxed); turn++) {
		words[self][turn % WORDS]++;
		come_to_stops(self);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[WORKERS];
	uint64_t added = 0, sum = 0;

	for (intptr_t i = 0; i < WORKERS; i++)
		CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
	for (int i = 0; i < WORKERS; i++)
		while (!atomic_load_explicit(&boxes[i].tid, memory_order_relaxed))
			sched_yield();
	for (int stop = 0; stop < ORDERED_STOPS;) {
		uint64_t before = 0, after = 0;

		if (pm_freeze_begin(1000000)) /* a busy machine; none is stopped */
			continue;
		for (int i = 0; i < WORKERS; i++)
			for (int k = 0; k < WORDS; k++, added++)
				before += words[i][k]++;
		for (int i = 0; i < WORKERS; i++)
			for (int k = 0; k < WORDS; k++)
				after += words[i][k];
		CHECK(after == before + WORKERS * WORDS);
		pm_freeze_end();
		stop++;
	}
	atomic_store_explicit(&over, true, memory_order_relaxed);
	for (int i = 0; i < WORKERS; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	for (int i = 0; i < WORKERS; i++)
		for (int k = 0; k < WORDS; k++)
			sum += words[i][k];
	CHECK(sum > added);
	printf("%d stops\n", ORDERED_STOPS);
	return 0;
}
