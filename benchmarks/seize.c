/* SPDX-License-Identifier: MIT */
/*
 * What it takes to stop all threads of a process.  seize PID ROUNDS
 * Prints, for each round, the nanoseconds from when the first thread is told to stop until the last one is let go.
 */
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { THREADS_MAX = 4096 };

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	static pid_t tids[THREADS_MAX];
	struct dirent *entry;
	char path[64];
	int count = 0;
	DIR *dir;

	if (argc != 3)
		return 2;
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	snprintf(path, sizeof(path), "/proc/%d/task", atoi(argv[1]));
	dir = opendir(path);
	if (!dir)
		fail("opendir");
	while ((entry = readdir(dir)) && count < THREADS_MAX)
		if (atoi(entry->d_name) > 0)
			tids[count++] = atoi(entry->d_name);
	for (int round = 0; round < atoi(argv[2]); round++) {
		uint64_t begin;
		int status;

		for (int i = 0; i < count; i++)
			if (ptrace(PTRACE_SEIZE, tids[i], 0, 0) < 0)
				fail("seize");
		begin = clock_ns();
		for (int i = 0; i < count; i++)
			if (ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) < 0)
				fail("interrupt");
		for (int i = 0; i < count; i++)
			while (waitpid(tids[i], &status, __WALL) < 0)
				if (errno != EINTR)
					fail("waitpid");
		for (int i = 0; i < count; i++)
			if (ptrace(PTRACE_DETACH, tids[i], 0, 0) < 0)
				fail("detach");
		printf("%llu\n", (unsigned long long)(clock_ns() - begin));
	}
	return 0;
}
