/* SPDX-License-Identifier: MIT */
/*
 * A process to be stopped.  held KIND THREADS MIB MAPPINGS
 * All of its threads, the first too, wait by KIND: epoll, nanosleep, futex or busy (which does not wait).  It has MIB of
 * memory whose pages differ from one another, and are the same in each process, and MAPPINGS mappings that can't be joined.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const char *kind;

static void *stay(void *unused)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	struct epoll_event event;
	volatile uint64_t count = 0;

	if (strcmp(kind, "epoll") == 0)
		for (int fd = epoll_create1(0);;)
			epoll_wait(fd, &event, 1, -1);
	if (strcmp(kind, "nanosleep") == 0)
		for (;;)
			nanosleep(&(struct timespec){.tv_sec = 3600}, NULL);
	if (strcmp(kind, "futex") == 0) {
		pthread_mutex_lock(&mutex);
		for (;;)
			pthread_cond_wait(&never, &mutex);
	}
	for (;;)
		count++;
	return unused;
}

static char *map(size_t bytes, int prot)
{
	char *at = mmap(NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return at;
}

int main(int argc, char **argv)
{
	size_t pages, mappings;
	pthread_attr_t attr;
	pthread_t thread;
	int threads;

	if (argc != 5)
		return 2;
	kind = argv[1];
	threads = atoi(argv[2]);
	pages = (size_t)atoi(argv[3]) << 8;
	mappings = (size_t)atoi(argv[4]);
	if (pages) {
		char *region = map(pages << 12, PROT_READ | PROT_WRITE);

		madvise(region, pages << 12, MADV_NOHUGEPAGE);
		for (size_t i = 0; i < pages; i++)
			*(uint64_t *)(region + (i << 12)) = i + 1;
	}
	for (size_t i = 0; i < mappings; i++)
		*map(4096, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ | PROT_WRITE | PROT_EXEC) = 1;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 * 1024);
	for (int i = 1; i < threads; i++)
		if (pthread_create(&thread, &attr, stay, NULL))
			return 1;
	puts("ready");
	fflush(stdout);
	stay(NULL);
	return 0;
}
