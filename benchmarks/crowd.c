/*
 * Processes to look at: many that have KSM on, or one with many mappings.
 *
 *	crowd children N [PAGES]	N idle children with PR_SET_MEMORY_MERGE, PAGES touched in each
 *	crowd mappings N		one process with N mappings of a page, every other one mergeable
 *
 * Prints a line when all is there, and ends when its stdin does.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { PAGE = 4096, SET_MEMORY_MERGE = 67 };

static char *map_pages(size_t pages, int prot)
{
	char *at = mmap(NULL, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return at;
}

static void make_children(int count, size_t pages)
{
	if (prctl(SET_MEMORY_MERGE, 1, 0, 0, 0)) {
		perror("prctl(PR_SET_MEMORY_MERGE)");
		exit(1);
	}
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("fork");
			exit(1);
		}
		if (pid == 0) {
			/* ends with its parent, however that ends */
			prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
			char *data = map_pages(pages, PROT_READ | PROT_WRITE);

			for (size_t page = 0; page < pages; page++)
				memset(data + page * PAGE, (int)page + 1, PAGE);
			for (;;)
				pause();
		}
	}
}

/* Neighbours that differ in their protection or advice are not joined into one mapping. */
static void make_mappings(int count)
{
	char *data = map_pages((size_t)count, PROT_READ | PROT_WRITE);

	memset(data, 'x', (size_t)count * PAGE);
	for (int i = 0; i < count; i += 2) {
		if (madvise(data + (size_t)i * PAGE, PAGE, MADV_MERGEABLE)) {
			perror("madvise");
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	char byte;

	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "children"))
		make_children(atoi(argv[2]), argc > 3 ? (size_t)atol(argv[3]) : 16);
	else
		make_mappings(atoi(argv[2]));
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
