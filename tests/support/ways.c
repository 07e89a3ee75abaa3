/* SPDX-License-Identifier: MIT */
/*
 * ways seal|spawn|direct SECONDS PAGES: threads write to mergeable memory and check each write, while
 *
 * seal: parts are promised not to be written (pm_agent_seal), and the promise is taken back, by turns; spawn: programs are started by posix_spawn(3) and vfork(2),
 * during which their thread can't be stopped; direct: files are opened for O_DIRECT, and read into the memory.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, WRITERS = 4, SPECIAL = 4, SEALED = 16, MERGEABLE = 12 };

static uint64_t *memory;
static size_t pages;
static atomic_bool over, failed;
static atomic_ulong turns, writes;
static int (*seal)(void *, size_t), (*unseal)(void *, size_t);

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

/* The same content as stress.c's, so that the test's segment serves both. */
static uint64_t base(size_t word)
{
	return mix(word + 1);
}

static void fail(const char *what, size_t page)
{
	fprintf(stderr, "ways: %s, page %zu\n", what, page);
	atomic_store(&failed, true);
	atomic_store(&over, true);
}

static void fill(size_t page)
{
	for (size_t word = page * WORDS; word < (page + 1) * WORDS; word++)
		memory[word] = base(word);
}

static bool is_base(size_t page)
{
	for (size_t word = page * WORDS; word < (page + 1) * WORDS; word++)
		if (memory[word] != base(word))
			return false;
	return true;
}

/* One word is changed, looked at for a while, and put back. */
static void write_once(size_t page, uint64_t seed)
{
	size_t word = page * WORDS + (seed >> 40) % WORDS;
	volatile uint64_t *at = &memory[word];

	*at = seed;
	for (uint64_t i = 0; i < (seed >> 20) % 16384 && *at == seed; i++) /* longer than a replacement takes */
		;
	if (*at != seed)
		fail("a write was lost", page);
	*at = base(word);
	if (*at != base(word))
		fail("a write back was lost", page);
	atomic_fetch_add(&writes, 1);
}

/* The pages from the middle on are the special threads'. */
static void *write_always(void *argument)
{
	uint64_t seed = (uintptr_t)argument + 1;

	while (!atomic_load(&over)) {
		seed = mix(seed + 0x9e3779b97f4a7c15ULL);
		write_once((seed >> 8) % (pages / 2 / WRITERS) * WRITERS + (uintptr_t)argument, seed);
	}
	return NULL;
}

static size_t part(uintptr_t number)
{
	return pages / 2 + number * (pages / 2 / SPECIAL);
}

static void *seal_always(void *argument)
{
	size_t first = part((uintptr_t)argument), count = pages / 2 / SPECIAL / SEALED;
	uint64_t seed = (uintptr_t)argument + 100;

	while (!atomic_load(&over)) {
		seed = mix(seed + 0x9e3779b97f4a7c15ULL);
		size_t page = first + (seed >> 8) % count * SEALED;
		void *at = memory + page * WORDS;

		if (seal(at, SEALED * PAGE))
			fail("it could not be sealed", page);
		nanosleep(&(struct timespec){ .tv_nsec = (long)(seed >> 20) % 1000000 }, NULL);
		if (unseal(at, SEALED * PAGE))
			fail("it could not be unsealed", page);
		for (size_t i = 0; i < 2 * SEALED; i++)
			write_once(page + i % SEALED, seed + i);
		for (size_t i = 0; i < SEALED; i++)
			if (!is_base(page + i))
				fail("after its seal", page + i);
		atomic_fetch_add(&turns, 1);
	}
	return NULL;
}

static void *spawn_always(void *argument)
{
	char *const command[] = { "true", NULL }, *const environment[] = { NULL };

	while (!atomic_load(&over)) {
		int status = -1;
		pid_t child;

		if (argument) {
			if (posix_spawn(&child, "/bin/true", NULL, NULL, command, environment))
				child = -1;
		} else {
			child = vfork();
			if (child == 0) {
				execve("/bin/true", command, environment);
				_exit(3);
			}
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			fail("a program could not be run", (size_t)status);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL); /* now it can be stopped */
		atomic_fetch_add(&turns, 1);
	}
	return NULL;
}

static void *read_always(void *argument)
{
	size_t first = part((uintptr_t)argument), count = pages / 2 / SPECIAL;
	uint64_t seed = (uintptr_t)argument + 200;
	int plain = open("/proc/self/exe", O_RDONLY);
	static _Thread_local char want[PAGE];

	while (!atomic_load(&over)) {
		seed = mix(seed + 0x9e3779b97f4a7c15ULL);
		size_t page = first + (seed >> 8) % count;
		off_t from = (off_t)((seed >> 40) % 3) * PAGE;
		int fd = open("/proc/self/exe", O_RDONLY | O_DIRECT);

		if (fd < 0 || pread(plain, want, PAGE, from) != PAGE)
			fail("the file can't be read", 0);
		for (int i = 0; i < 3 && !atomic_load(&over); i++, page = first + (page + 1 - first) % count) {
			if (pread(fd, memory + page * WORDS, PAGE, from) != PAGE)
				fail("it can't be read directly", page);
			if (memcmp(memory + page * WORDS, want, PAGE))
				fail("a direct read was lost", page);
			fill(page);
			if (!is_base(page))
				fail("it was not filled again", page);
		}
		close(fd);
		atomic_fetch_add(&turns, 1);
	}
	close(plain);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "spawn";
	void *(*special)(void *) = strcmp(what, "seal") == 0 ? seal_always : strcmp(what, "direct") == 0 ? read_always : spawn_always;
	time_t end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 3);
	pthread_t threads[WRITERS + SPECIAL];

	pages = argc > 3 ? (size_t)atol(argv[3]) : 2048;
	*(void **)&seal = dlsym(RTLD_DEFAULT, "pm_agent_seal");
	*(void **)&unseal = dlsym(RTLD_DEFAULT, "pm_agent_unseal");
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t page = 0; page < pages; page++)
		fill(page);
	if (memory == MAP_FAILED || madvise(memory, pages * PAGE, MERGEABLE)) {
		perror("ways: madvise");
		return 2;
	}
	printf("memory %lu\n", (unsigned long)(uintptr_t)memory);
	fflush(stdout);
	for (uintptr_t i = 0; i < WRITERS + SPECIAL; i++)
		pthread_create(&threads[i], NULL, i < WRITERS ? write_always : special, (void *)(i < WRITERS ? i : i - WRITERS));
	while (time(NULL) < end && !atomic_load(&over))
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	atomic_store(&over, true);
	for (int i = 0; i < WRITERS + SPECIAL; i++)
		pthread_join(threads[i], NULL);
	for (size_t page = 0; page < pages && !failed; page++)
		if (!is_base(page))
			fail("at the end", page);
	printf("turns %lu writes %lu\n", turns, writes);
	return atomic_load(&failed) || !turns || !writes;
}
