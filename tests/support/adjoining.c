/* SPDX-License-Identifier: MIT */
/* Moves memory of which one half is tracked and the other is new: one mapping to the program.  Says "ready", then waits for a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGES = 64, PAGE = 4096 };
static const size_t HALF = (size_t)PAGES * PAGE;

static void check(int right, const char *what)
{
	if (right)
		return;
	perror(what);
	exit(1);
}

static char *fill(char *at, size_t first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		memset(at + i * PAGE, (int)(first + i), PAGE);
	return at;
}

static void check_content(const char *at, size_t first)
{
	for (size_t i = 0; i < 2 * HALF; i++)
		check(at[i] == (char)(first + i / PAGE), "content");
}

static void renew_second_half(char *area, size_t first)
{
	check(munmap(area + HALF, HALF) == 0, "munmap");
	check(mmap(area + HALF, HALF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == area + HALF, "mmap");
	fill(area + HALF, first + PAGES, PAGES);
}

int main(void)
{
	char *area[2], *moved, word[8];

	for (int i = 0; i < 2; i++) { /* room after it, so that it stays apart */
		area[i] = mmap(NULL, 4 * HALF, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		check(area[i] != MAP_FAILED && mprotect(area[i], 2 * HALF, PROT_READ | PROT_WRITE) == 0, "mmap");
		fill(area[i], 2 * PAGES * (size_t)i, 2 * (size_t)PAGES); /* no two are alike */
	}
	puts("ready");
	fflush(stdout);
	check(fgets(word, sizeof(word), stdin) != NULL, "fgets");
	for (int i = 0; i < 2; i++)
		renew_second_half(area[i], 2 * PAGES * (size_t)i);
	moved = mremap(area[0], 2 * HALF, 3 * HALF, MREMAP_MAYMOVE);
	check(moved != MAP_FAILED, "mremap");
	check_content(moved, 0);
	moved = mremap(area[1], 2 * HALF, 2 * HALF, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, 2 * HALF, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	check(moved != MAP_FAILED, "mremap to a fixed place");
	check_content(moved, 2 * (size_t)PAGES);
	puts("moved");
	return 0;
}
