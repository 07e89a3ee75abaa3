/* SPDX-License-Identifier: MIT */
/*
 * Which thread is borrowed, and by whom. One is enough: madvise() and prctl() act on the whole address space, and a
 * thread that is not stopped notices nothing. Best is one that sleeps anyhow.
 *
 * When a tracer ends, the kernel detaches, and the thread would run on with the registers of our call. So the tracer is
 * a process of its own, with all signals blocked, that shares our memory: killing us does not end it. Yama may let only
 * a parent trace a process; then the tracer is a thread.
 */
#include "inject.h"

#include <errno.h>

#if defined(__x86_64__) || defined(__aarch64__)
#include "inject_impl.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	STACK_BYTES = 256 * 1024,
	LOOK_MS = 10000, /* for all attempts to stop a thread */
	ROUNDS = 20,     /* of listing the threads, when all that were listed have ended */
	KEPT_MAX = 1024, /* threads that are kept for later, when a better one is looked for */
};

struct kept {
	pid_t tid;
	enum pm_wait wait;
};

/* What says more about why nothing came of it: a later thread's error, or that of one before. */
static int worse(int before, int now)
{
	return before == 0 || before == -ESRCH ? now : before;
}

static bool is_final(int err)
{
	return err != -EBUSY && err != -ESRCH && err != -EPERM && err != -ENOENT;
}

/* True when that is it. */
static bool try_thread(struct pm_job *job, pid_t tid)
{
	int err = pm_inject_into(job, tid);

	if (is_final(err)) {
		job->err = err;
		return true;
	}
	job->err = worse(job->err, err);
	if (pm_inject_clock() < job->deadline_ns)
		return false;
	job->err = worse(job->err, -EBUSY);
	return true;
}

/* The sleeping ones as they are found, then the others; true when that is it. */
static bool try_all(struct pm_job *job, DIR *dir)
{
	struct kept kept[KEPT_MAX];
	struct dirent *entry;
	size_t count = 0;
	bool done = false;

	while (!done && (entry = readdir(dir))) {
		pid_t tid = (pid_t)atoi(entry->d_name);
		enum pm_wait wait = tid > 0 ? pm_wait_of(job->pid, tid) : PM_WAIT_DEAD;

		if (wait == PM_WAIT_SLEEPS)
			done = try_thread(job, tid);
		else if (wait != PM_WAIT_DEAD && count < KEPT_MAX)
			kept[count++] = (struct kept){tid, wait};
	}
	for (int wait = PM_WAIT_SLEEPS + 1; wait < PM_WAIT_DEAD; wait++)
		for (size_t i = 0; !done && i < count; i++)
			if ((int)kept[i].wait == wait)
				done = try_thread(job, kept[i].tid);
	return done;
}

static int run_job(void *arg)
{
	struct pm_job *job = arg;
	char path[64];

	/* While it waits for a CPU, the target stands still. Without the privilege it has to do without. */
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	snprintf(path, sizeof(path), "/proc/%d/task", (int)job->pid);
	job->err = 0;
	job->deadline_ns = pm_inject_clock() + (uint64_t)LOOK_MS * 1000000u;
	for (int i = 0; i < ROUNDS; i++) {
		DIR *dir = opendir(path);
		bool done;

		if (!dir) {
			job->err = worse(job->err, errno == ENOENT ? -ESRCH : -errno);
			return 0;
		}
		done = try_all(job, dir);
		closedir(dir);
		if (done || (job->err && job->err != -ESRCH))
			return 0;
	}
	job->err = -ESRCH;
	return 0;
}

static int run_process(void *arg)
{
	struct sigaction plain = {.sa_handler = SIG_DFL};

	setsid(); /* no group's SIGKILL is meant for it */
	sigaction(SIGCHLD, &plain, NULL); /* so that stops send it */
	return run_job(arg);
}

static void *run_thread(void *arg)
{
	run_job(arg);
	return NULL;
}

static int in_process(struct pm_job *job)
{
	char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int err = 0;
	pid_t pid;

	if (stack == MAP_FAILED)
		return -errno;
	job->own_process = true;
	job->err = -EINTR; /* stays when it is killed */
	/* As vfork() does, so that C library calls in it are safe: the thread whose locals it uses waits. No SIGCHLD. */
	pid = clone(run_process, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK, job);
	if (pid < 0)
		err = -errno;
	else
		while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
			;
	munmap(stack, STACK_BYTES);
	return err ? err : job->err;
}

static int in_thread(struct pm_job *job)
{
	pthread_t thread;
	int err;

	job->own_process = false;
	err = pthread_create(&thread, NULL, run_thread, job);
	if (err)
		return -err;
	pthread_join(thread, NULL);
	return job->err;
}

int pm_inject(pid_t pid, struct pm_call *calls, size_t count, uint64_t *stopped_ns)
{
	struct pm_job job = {.pid = pid, .calls = calls, .count = count, .stopped_ns = stopped_ns};
	sigset_t all, old;
	int err;

	*stopped_ns = 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* inherited by the tracer */
	err = in_process(&job);
	if (err == -EPERM)
		err = in_thread(&job);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return err;
}
#else
int pm_inject(pid_t pid, struct pm_call *calls, size_t count, uint64_t *stopped_ns)
{
	(void)pid, (void)calls, (void)count;
	*stopped_ns = 0;
	return -EOPNOTSUPP;
}
#endif
