/* SPDX-License-Identifier: MIT */
/* Moves and unmerges merged memory whose neighbour is the stack of a thread.  Says "ready", then waits for a line. */
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 256, PAGE = 4096, STACK = 32 << 10 };
static sem_t over;

static void *wait_there(void *unused)
{
	sem_wait(&over);
	return unused;
}

static void check(int right, const char *what)
{
	if (right)
		return;
	perror(what);
	exit(1);
}

static void check_content(const char *at)
{
	for (size_t i = 0; i < (size_t)PAGES * PAGE; i++)
		check(at[i] == 5, "content");
}

int main(void)
{
	size_t length = (size_t)PAGES * PAGE;
	char *area = mmap(NULL, length + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *moved, word[8];
	pthread_attr_t attributes;
	pthread_t thread;

	check(area != MAP_FAILED, "mmap");
	memset(area, 5, length);
	check(madvise(area, length, 12) == 0, "madvise");
	puts("ready");
	fflush(stdout);
	check(fgets(word, sizeof(word), stdin) != NULL, "fgets");
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, area + length, STACK);
	check(pthread_create(&thread, &attributes, wait_there, NULL) == 0, "pthread_create");
	usleep(10000);
	moved = mremap(area, length / 2, length / 2, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	check(moved != MAP_FAILED, "mremap of the first half");
	moved = mremap(area + length / 2, length / 2, length / 2, MREMAP_MAYMOVE | MREMAP_FIXED, moved + length / 2);
	check(moved != MAP_FAILED, "mremap of the half beside the stack");
	check_content(moved - length / 2);
	puts("moved");
	fflush(stdout);
	check(fgets(word, sizeof(word), stdin) != NULL, "fgets");
	check_content(moved - length / 2);
	sem_post(&over);
	pthread_join(thread, NULL);
	puts("over");
	return 0;
}
