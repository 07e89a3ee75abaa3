// SPDX-License-Identifier: MIT
/* The census alone: files and this very process, with several threads, for the sanitizers. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "census.h"
#include "sys.h"

#define CHECK(condition)                                                                     \
	do {                                                                                 \
		if (!(condition)) {                                                          \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                             \
		}                                                                            \
	} while (0)

enum { PAGES = 40000 };

static void fill(uint64_t *page, uint64_t number)
{
	for (size_t i = 0; i < PM_PAGE_SIZE / sizeof(*page); i++)
		page[i] = number;
}

/* Contents 0 (zero) to 9999, each four times; two regions. */
static int make_file(void)
{
	int fd = memfd_create("census", MFD_CLOEXEC);
	uint64_t page[PM_PAGE_SIZE / sizeof(uint64_t)];

	CHECK(fd >= 0);
	for (uint64_t i = 0; i < PAGES; i++) {
		fill(page, i % (PAGES / 4));
		CHECK(write(fd, page, sizeof(page)) == sizeof(page));
	}
	return fd;
}

static void test_file(unsigned int threads)
{
	struct pm_census *c = NULL;
	struct pm_census_totals t;
	struct pm_census_top top[4];
	struct pm_census_run_totals runs;
	struct pm_census_region_info info;
	const uint32_t party[] = { 0, 1 };
	double matrix[4] = { 0 }, saving[2];
	struct pm_census_pairs pairs = { .party = party, .parties = 2, .matrix = matrix };
	size_t ntop = 4, n = 2;
	uint64_t done, total;
	uint32_t order[2];
	int fd = make_file(), space;

	CHECK(!pm_census_create(1, 0, threads, &c));
	space = pm_census_add_file(c, fd);
	CHECK(space == 0);
	CHECK(pm_census_add_region(c, 0, 1, PM_PAGE_SIZE, 0) == -EINVAL);
	CHECK(pm_census_add_region(c, 1, 0, PM_PAGE_SIZE, 0) == -EINVAL);
	CHECK(pm_census_add_region(c, 0, 0, PAGES / 2 * (uint64_t)PM_PAGE_SIZE, 0) == 0);
	CHECK(pm_census_add_region(c, 0, PAGES / 2 * (uint64_t)PM_PAGE_SIZE, PAGES * (uint64_t)PM_PAGE_SIZE,
				   PAGES / 2 * (uint64_t)PM_PAGE_SIZE) == 1);
	CHECK(pm_census_runs(c, 0, &runs) == -EINVAL); /* out of order */
	CHECK(!pm_census_read(c));
	pm_census_progress(c, &done, &total);
	CHECK(done == PAGES && total == PAGES);
	CHECK(!pm_census_look_again(c));
	CHECK(!pm_census_group(c, 256, &pairs, 1, top, &ntop, &t));
	CHECK(t.held == PAGES && t.zero == 4 && t.volatile_ == 0);
	CHECK(t.distinct == PAGES / 4 - 1 && t.shared == PAGES / 4 - 1 && t.sharing == 3 * t.shared);
	CHECK(t.unshared == 0 && t.within == t.sharing && t.between == 0);
	CHECK(matrix[1] == 2.0 * (double)t.shared && matrix[1] == matrix[2] && matrix[0] == (double)t.shared);
	CHECK(ntop == 4 && top[0].pages == 4 && top[0].regions == 2);
	CHECK(pm_census_bytes(c) <= 16ull * PAGES);
	CHECK(!pm_census_runs(c, 0, &runs));
	CHECK(runs.runs == 4 && runs.pages == PAGES - 4); /* each begins after a zero page */
	pm_census_region(c, 1, &info);
	CHECK(info.present == PAGES / 2 && info.runs == 2 && info.vmas == 4);
	CHECK(!pm_census_select(c, order, saving, &n));
	CHECK(n == 2 && saving[1] == (double)(t.sharing + t.zero) && saving[0] < saving[1]);
	CHECK(pm_census_group(c, 256, NULL, 0, NULL, NULL, &t) == -EINVAL); /* once only */
	pm_census_destroy(c);
	close(fd);
}

/* A child's memory: what it shares with its parent by fork must stay shared, and equal only itself. */
static void test_process(void)
{
	enum { N = 600 };
	uint8_t *memory = mmap(NULL, N * PM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pm_census *c = NULL;
	struct pm_census_totals t;
	uint64_t start = (uintptr_t)memory;
	int up[2], down[2], own, others, mem, space;
	char path[64], byte = 0;
	pid_t child;

	CHECK(memory != MAP_FAILED && !pipe(up) && !pipe(down));
	for (uint64_t i = 0; i < N; i++)
		fill((uint64_t *)(void *)(memory + i * PM_PAGE_SIZE), i + 1);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		for (uint64_t i = 0; i < 100; i++) /* written, and equal again: now two pages */
			fill((uint64_t *)(void *)(memory + i * PM_PAGE_SIZE), i + 1);
		CHECK(write(up[1], &byte, 1) == 1);
		CHECK(read(down[0], &byte, 1) >= 0);
		_exit(0);
	}
	CHECK(read(up[0], &byte, 1) == 1);
	snprintf(path, sizeof(path), "/proc/%d/pagemap", child);
	others = open(path, O_RDONLY);
	snprintf(path, sizeof(path), "/proc/%d/mem", child);
	mem = open(path, O_RDONLY);
	own = open("/proc/self/pagemap", O_RDONLY);
	CHECK(own >= 0);
	if (others >= 0 && mem >= 0) {
		for (int round = 0; round < 2; round++) { /* the first must not have changed what the second finds */
			CHECK(!pm_census_create(1, 0, 3, &c));
			space = pm_census_add_process(c, getpid(), own, open("/proc/self/mem", O_RDONLY));
			CHECK(pm_census_add_region(c, space, start, start + N * PM_PAGE_SIZE, 0) == 0);
			space = pm_census_add_process(c, child, others, mem);
			CHECK(pm_census_add_region(c, space, start, start + N * PM_PAGE_SIZE, 0) == 1);
			CHECK(!pm_census_read(c));
			CHECK(!pm_census_group(c, 256, NULL, 0, NULL, NULL, &t));
			CHECK(t.held == 2 * N && t.distinct == N);
			CHECK(t.shared == 100 && t.sharing == 100 && t.unshared == N - 100 && t.aliases == N - 100);
			pm_census_destroy(c);
		}
	}
	CHECK(write(down[1], &byte, 1) == 1);
	CHECK(waitpid(child, NULL, 0) == child);
	munmap(memory, N * PM_PAGE_SIZE);
}

static void test_a_process_that_is_gone(void)
{
	struct pm_census *c = NULL;
	struct pm_census_space_info info;
	struct pm_census_totals t;
	char path[64];
	pid_t child = fork();
	int fd;

	CHECK(child >= 0);
	if (!child) {
		pause();
		_exit(0);
	}
	snprintf(path, sizeof(path), "/proc/%d/pagemap", child);
	fd = open(path, O_RDONLY);
	CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	if (fd < 0)
		return;
	CHECK(!pm_census_create(1, 0, 1, &c));
	CHECK(pm_census_add_process(c, child, fd, -1) == 0);
	CHECK(pm_census_add_region(c, 0, 0x10000, 0x7ffffffff000, 0) == 0);
	CHECK(!pm_census_read(c));
	pm_census_space(c, 0, &info);
	CHECK(info.state == PM_SPACE_GONE);
	CHECK(!pm_census_group(c, 256, NULL, 0, NULL, NULL, &t));
	CHECK(t.held == 0);
	pm_census_destroy(c);
	close(fd);
}

/* A content of a third of all pages is counted, whatever the sample keeps. */
static void test_sample(void)
{
	enum { N = 6000, OFTEN = 2000 };
	char name[] = "/tmp/pm-census-XXXXXX";
	int fd = mkstemp(name);
	static uint64_t page[PM_PAGE_SIZE / sizeof(uint64_t)];

	CHECK(fd >= 0 && !unlink(name));
	for (uint64_t i = 0; i < N; i++) {
		fill(page, i % 3 ? i + 10 : 1);
		CHECK(write(fd, page, PM_PAGE_SIZE) == (ssize_t)PM_PAGE_SIZE);
	}
	for (uint64_t salt = 0; salt < 4; salt++) {
		struct pm_census_top top[1];
		struct pm_census_totals t;
		struct pm_census *c;
		size_t ntop = 1;

		CHECK(!pm_census_create(16, salt, 2, &c));
		CHECK(pm_census_add_file(c, fd) == 0);
		CHECK(pm_census_add_region(c, 0, 0, N * (uint64_t)PM_PAGE_SIZE, 0) == 0);
		CHECK(!pm_census_read(c) && !pm_census_look_again(c));
		CHECK(!pm_census_group(c, 4 * OFTEN, NULL, 0, top, &ntop, &t));
		CHECK(t.shared == 1 && t.sharing == OFTEN - 1 && t.within == OFTEN - 1 && t.sharing2 == 0);
		CHECK(ntop == 1 && top[0].pages == OFTEN && top[0].spaces == 1);
		CHECK(t.held < N / 8 && (t.distinct - 1) % 16 == 0);
		pm_census_destroy(c);
	}
	close(fd);
}

int main(void)
{
	test_file(1);
	test_file(4);
	test_process();
	test_sample();
	test_a_process_that_is_gone();
	return 0;
}
