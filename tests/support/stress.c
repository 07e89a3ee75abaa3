/* SPDX-License-Identifier: MIT */
/*
 * A program that writes its mergeable memory in every way it can and checks every byte of it.
 *
 * All instances started with the same page count hold the same base contents, so they merge; each page then
 * differs from its base by at most one word, which its owner thread knows.  Plain stores, read(2), recv(2) and
 * process_vm_writev write it; forked children check what they inherited and write their own copies.
 * Exit status: 0 when every check held, 1 with a line on stderr otherwise.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MADV_MERGEABLE_ = 12, TIDE = 32 /* turns, of 30 ms and a fork */ };

static unsigned char *memory;
static size_t pages = 4096;
static int threads = 8;
static double seconds = 5;
static atomic_bool stop, failed;
static atomic_uint half; /* that is being written: the other one holds still, and is merged however slow the scanner */
static atomic_ullong writes, checks, forks;

struct change {
	uint32_t word; /* index; WORDS: unchanged */
	uint64_t value;
};
static struct change *changes;

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ (x >> 33);
}

static uint64_t base_word(size_t page, uint32_t word)
{
	return mix(page * WORDS + word + 1);
}

static void expected(size_t page, uint64_t *out)
{
	for (uint32_t i = 0; i < WORDS; i++)
		out[i] = base_word(page, i);
	if (changes[page].word < WORDS)
		out[changes[page].word] = changes[page].value;
}

static void complain(const char *how, size_t page, const uint64_t *want)
{
	const uint64_t *have = (const uint64_t *)(memory + page * PAGE);

	for (uint32_t i = 0; i < WORDS; i++)
		if (have[i] != want[i]) {
			fprintf(stderr, "stress: pid %d page %zu word %u after %s: %016llx, not %016llx\n",
				getpid(), page, i, how, (unsigned long long)have[i], (unsigned long long)want[i]);
			break;
		}
	atomic_store(&failed, true);
	atomic_store(&stop, true);
}

static bool check(size_t page, const char *how)
{
	uint64_t want[WORDS];

	expected(page, want);
	atomic_fetch_add_explicit(&checks, 1, memory_order_relaxed);
	if (memcmp(memory + page * PAGE, want, PAGE) == 0)
		return true;
	complain(how, page, want);
	return false;
}

static bool exchange = true; /* use process_vm_writev */

static bool transfer(int out, int in, bool socket, size_t page, const void *content)
{
	size_t done = 0;

	if (write(out, content, PAGE) != PAGE)
		return false;
	while (done < PAGE) {
		unsigned char *to = memory + page * PAGE + done;
		ssize_t n = socket ? recv(in, to, PAGE - done, 0) : read(in, to, PAGE - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static void *writer(void *argument)
{
	size_t self = (size_t)argument;
	uint64_t seed = mix(self + 1 + (uint64_t)getpid() * 1000), content[WORDS];
	int pipes[2], sockets[2];

	if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) {
		perror("stress: pipe");
		exit(1);
	}
	while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
		seed = mix(seed + 0x9e3779b97f4a7c15ULL);
		size_t own = pages / (size_t)threads, first = atomic_load_explicit(&half, memory_order_relaxed) * (own / 2);
		size_t page = (first + (seed >> 8) % (own - own / 2)) * (size_t)threads + self;
		uint32_t word = (uint32_t)(seed >> 40) % WORDS;
		volatile uint64_t *at = (volatile uint64_t *)(memory + page * PAGE);
		const char *how = "a store";

		switch (seed % 16) {
		case 0: { /* the whole page through a pipe */
			changes[page] = (struct change){ word, seed };
			expected(page, content);
			how = "read(2)";
			if (!transfer(pipes[1], pipes[0], false, page, content))
				complain("a failed read(2)", page, content);
			break;
		}
		case 1: { /* and through a socket */
			changes[page] = (struct change){ word, seed };
			expected(page, content);
			how = "recv(2)";
			if (!transfer(sockets[1], sockets[0], true, page, content))
				complain("a failed recv(2)", page, content);
			break;
		}
		case 2: { /* another process's way in */
			struct iovec from = { content, PAGE }, to = { memory + page * PAGE, PAGE };

			changes[page] = (struct change){ word, seed };
			expected(page, content);
			how = "process_vm_writev";
			if (!exchange || process_vm_writev(getpid(), &from, 1, &to, 1, 0) != PAGE)
				transfer(pipes[1], pipes[0], false, page, content);
			break;
		}
		case 3:
		case 4:
		case 5: /* a change of one word; an earlier change goes back first */
			if (changes[page].word < WORDS)
				at[changes[page].word] = base_word(page, changes[page].word);
			at[word] = seed;
			changes[page] = (struct change){ word, seed };
			break;
		default: /* back to the base, where it can be merged again */
			if (changes[page].word < WORDS) {
				at[changes[page].word] = base_word(page, changes[page].word);
				changes[page].word = WORDS;
			}
			how = "a look";
		}
		atomic_fetch_add_explicit(&writes, 1, memory_order_relaxed);
		if (!check(page, how))
			break;
		if (seed % 7 == 0) /* leave the scanner something that holds still */
			nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
	}
	return NULL;
}

/* The forking thread owns the pages after the writers' and does not write while it forks. */
static bool fork_once(size_t first, size_t count, uint64_t seed)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		return true;
	if (child == 0) {
		for (size_t i = 0; i < count; i++) {
			size_t page = first + i;

			if (!check(page, "fork"))
				_exit(1);
			changes[page] = (struct change){ (uint32_t)(mix(seed + i) % WORDS), seed + i };
			((volatile uint64_t *)(memory + page * PAGE))[changes[page].word] = seed + i;
			if (!check(page, "a child's store"))
				_exit(1);
		}
		_exit(0);
	}
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	atomic_fetch_add(&forks, 1);
	for (size_t i = 0; i < count; i++)
		if (!check(first + i, "a child's life"))
			return false;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv)
{
	int option;
	bool forking = true;

	while ((option = getopt(argc, argv, "p:t:s:FE")) != -1) {
		if (option == 'p')
			pages = strtoul(optarg, NULL, 0);
		else if (option == 't')
			threads = atoi(optarg);
		else if (option == 's')
			seconds = atof(optarg);
		else if (option == 'F')
			forking = false;
		else if (option == 'E') /* such programs are left out of the replacement of scattered pages */
			exchange = false;
		else
			return 2;
	}
	pages -= pages % (size_t)threads;
	size_t quiet = 64, all = pages + quiet;
	pthread_t *handles = calloc((size_t)threads, sizeof(*handles));

	memory = mmap(NULL, all * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	changes = calloc(all, sizeof(*changes));
	if (memory == MAP_FAILED || !changes || !handles)
		return 2;
	for (size_t page = 0; page < all; page++) {
		changes[page].word = WORDS;
		expected(page, (uint64_t *)(memory + page * PAGE));
	}
	if (madvise(memory, all * PAGE, MADV_MERGEABLE_)) {
		perror("stress: madvise");
		return 2;
	}
	printf("ready\n");
	fflush(stdout);

	for (size_t i = 0; i < (size_t)threads; i++)
		if (pthread_create(&handles[i], NULL, writer, (void *)i))
			return 2;
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (uint64_t turn = 1; !atomic_load(&stop); turn++) {
		nanosleep(&(struct timespec){ .tv_nsec = 30000000 }, NULL);
		if (forking && !fork_once(pages, quiet, turn * 1000)) {
			atomic_store(&failed, true);
			break;
		}
		atomic_store_explicit(&half, turn / TIDE % 2, memory_order_relaxed);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9 >= seconds)
			break;
	}
	atomic_store(&stop, true);
	for (int i = 0; i < threads; i++)
		pthread_join(handles[i], NULL);
	for (size_t page = 0; page < all && !atomic_load(&failed); page++)
		check(page, "the end");
	printf("writes %llu checks %llu forks %llu\n", (unsigned long long)writes, (unsigned long long)checks,
	       (unsigned long long)forks);
	return atomic_load(&failed) ? 1 : 0;
}
