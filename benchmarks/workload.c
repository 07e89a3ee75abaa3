/*
 * A process whose memory is to be merged: seeded pages, some of them its own, marked by a plain madvise(MADV_MERGEABLE),
 * so that the kernel's KSM takes them, or, where it is preloaded, pagemerge's engine.
 *
 *   workload PAGES UNIQUE_PERCENT OWN_SEED GRAIN
 *
 * GRAIN 0 keeps the order, N shuffles pieces of N pages.  It then answers commands, a line each:
 *
 *   mark            madvise the memory
 *   read            GB/s of a plain read loop over it
 *   write N RATE    start N threads that each write RATE times a second, each time a counter of its own to a random page
 *   lap             how late those writes were, and how long they took, since the lap before (nanoseconds)
 *   rest            end the threads
 *   verify          check every byte, and every counter that was written
 *
 * It is no part of pagemerge, and knows nothing of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	WORDS = PAGE / 8,
	THREADS_MAX = 64,
	SUB_BITS = 5, /* buckets of a histogram for each power of two: 3 % apart */
	BUCKETS = 64 << SUB_BITS,
};

struct histogram {
	_Atomic uint64_t count[BUCKETS];
};

struct writer {
	pthread_t thread;
	int index;
	uint64_t *last; /* the counter that each page should hold; 0: never written */
	struct histogram late; /* from when a write was due until it was done */
	struct histogram took; /* the store alone */
};

static uint64_t (*memory)[WORDS];
static uint64_t pages;
static uint64_t *order; /* which logical page lies at a position */
static uint64_t own_seed;
static unsigned unique_percent;
static struct writer writers[THREADS_MAX];
static int nwriters;
static uint64_t period_ns;
static _Atomic bool resting;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static bool is_unique(uint64_t logical)
{
	return mix(logical ^ 0x756e69717565) % 100 < unique_percent;
}

/* The words of a page, one after the other, from what it starts with. */
static uint64_t page_seed(uint64_t logical)
{
	return mix(logical * 2 + (is_unique(logical) ? mix(own_seed) | 1 : 0));
}

static uint64_t next_word(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return *state ^ (*state >> 29);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void shuffle(uint64_t grain)
{
	uint64_t pieces = pages / grain;

	for (uint64_t i = pieces - 1; i > 0; i--) {
		uint64_t j = mix(i ^ mix(own_seed)) % (i + 1);

		for (uint64_t k = 0; k < grain; k++) {
			uint64_t t = order[i * grain + k];

			order[i * grain + k] = order[j * grain + k];
			order[j * grain + k] = t;
		}
	}
}

static int bucket_of(uint64_t ns)
{
	int top = 63 - __builtin_clzll(ns | 1);

	if (top < SUB_BITS)
		return (int)ns;
	return ((top - SUB_BITS + 1) << SUB_BITS) + (int)((ns >> (top - SUB_BITS)) & ((1 << SUB_BITS) - 1));
}

/* The smallest value that falls in a bucket. */
static uint64_t bucket_floor(int bucket)
{
	int octave = bucket >> SUB_BITS;
	uint64_t sub = (uint64_t)bucket & ((1 << SUB_BITS) - 1);

	return octave == 0 ? sub : (sub | (1u << SUB_BITS)) << (octave - 1);
}

static void record(struct histogram *h, uint64_t ns)
{
	atomic_fetch_add_explicit(&h->count[bucket_of(ns)], 1, memory_order_relaxed);
}

static void *write_pages(void *arg)
{
	struct writer *w = arg;
	uint64_t random = mix(own_seed * 100 + (uint64_t)w->index);
	uint64_t due = now_ns() + random % period_ns;

	prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul);
	for (uint64_t counter = 1; !atomic_load_explicit(&resting, memory_order_relaxed); counter++) {
		struct timespec until = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)};

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
			;
		uint64_t page = mix(random++) % pages;
		uint64_t before = now_ns();

		__atomic_store_n(&memory[page][w->index], counter, __ATOMIC_RELAXED);
		uint64_t after = now_ns();

		w->last[page] = counter;
		record(&w->took, after - before);
		record(&w->late, after - due);
		due += period_ns;
	}
	return NULL;
}

static int start_writers(int n, unsigned rate)
{
	if (nwriters > 0 || n < 1 || n > THREADS_MAX || rate < 1)
		return -EINVAL;
	period_ns = 1000000000u / rate;
	atomic_store(&resting, false);
	for (int i = 0; i < n; i++) {
		writers[i].index = i;
		if (!writers[i].last)
			writers[i].last = calloc(pages, sizeof(*writers[i].last));
		if (!writers[i].last)
			return -ENOMEM;
		int err = pthread_create(&writers[i].thread, NULL, write_pages, &writers[i]);

		if (err)
			return -err;
		nwriters = i + 1;
	}
	return 0;
}

static void rest(void)
{
	atomic_store(&resting, true);
	for (int i = 0; i < nwriters; i++)
		pthread_join(writers[i].thread, NULL);
	nwriters = 0;
}

/* Take the counts of all threads out of their histograms, and print quantiles. */
static void print_quantiles(const char *name, size_t offset)
{
	static const double wanted[] = {0.5, 0.9, 0.99, 0.999};
	static const char *const names[] = {"p50", "p90", "p99", "p999"};
	static uint64_t sum[BUCKETS];
	uint64_t total = 0;
	uint64_t seen = 0;
	uint64_t most = 0;
	int next = 0;

	memset(sum, 0, sizeof(sum));
	for (int i = 0; i < THREADS_MAX; i++) {
		struct histogram *h = (void *)((char *)&writers[i] + offset);

		for (int b = 0; b < BUCKETS; b++)
			sum[b] += atomic_exchange_explicit(&h->count[b], 0, memory_order_relaxed);
	}
	for (int b = 0; b < BUCKETS; b++)
		total += sum[b];
	printf("\"%s\": {\"count\": %" PRIu64, name, total);
	for (int b = 0; b < BUCKETS && total > 0; b++) {
		seen += sum[b];
		if (sum[b])
			most = bucket_floor(b);
		while (next < 4 && (double)seen >= wanted[next] * (double)total)
			printf(", \"%s\": %" PRIu64, names[next++], bucket_floor(b));
	}
	printf(", \"max\": %" PRIu64 "}", most);
}

static uint64_t count_bad_pages(void)
{
	uint64_t bad = 0;

	for (uint64_t p = 0; p < pages; p++) {
		uint64_t state = page_seed(order[p]);
		bool good = true;

		for (int w = 0; w < WORDS; w++) {
			uint64_t expected = next_word(&state);

			if (w < THREADS_MAX && writers[w].last && writers[w].last[p])
				expected = writers[w].last[p];
			good &= memory[p][w] == expected;
		}
		bad += !good;
	}
	return bad;
}

static double read_speed(void)
{
	double best = 0;

	for (int round = 0; round < 3; round++) {
		uint64_t start = now_ns();
		uint64_t sum = 0;

		for (uint64_t p = 0; p < pages; p++)
			for (int w = 0; w < WORDS; w++)
				sum += memory[p][w];
		__asm__ volatile("" : : "r"(sum));
		double speed = (double)pages * PAGE / (double)(now_ns() - start);

		if (speed > best)
			best = speed;
	}
	return best;
}

static bool answer(char *line)
{
	char *word = strtok(line, " \n");

	if (!word)
		return false;
	if (!strcmp(word, "mark")) {
		if (madvise(memory, pages * PAGE, MADV_MERGEABLE)) {
			printf("error %s\n", strerror(errno));
			return true;
		}
		puts("ok");
	} else if (!strcmp(word, "read")) {
		printf("%.3f\n", read_speed());
	} else if (!strcmp(word, "write")) {
		char *n = strtok(NULL, " \n");
		char *rate = strtok(NULL, " \n");
		int err = n && rate ? start_writers(atoi(n), (unsigned)atoi(rate)) : -EINVAL;

		printf(err ? "error %s\n" : "ok\n", strerror(-err));
	} else if (!strcmp(word, "lap")) {
		putchar('{');
		print_quantiles("late", offsetof(struct writer, late));
		fputs(", ", stdout);
		print_quantiles("took", offsetof(struct writer, took));
		puts("}");
	} else if (!strcmp(word, "rest")) {
		rest();
		puts("ok");
	} else if (!strcmp(word, "verify")) {
		printf("%" PRIu64 "\n", count_bad_pages());
	} else {
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	char line[256];
	uint64_t equal = 0;

	if (argc != 5) {
		fprintf(stderr, "usage: %s PAGES UNIQUE_PERCENT OWN_SEED GRAIN\n", argv[0]);
		return 2;
	}
	pages = strtoull(argv[1], NULL, 0);
	unique_percent = (unsigned)strtoul(argv[2], NULL, 0);
	own_seed = strtoull(argv[3], NULL, 0);
	uint64_t grain = strtoull(argv[4], NULL, 0);

	order = malloc(pages * sizeof(*order));
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == 0 || !order || memory == MAP_FAILED) {
		fprintf(stderr, "%s: no memory for %" PRIu64 " pages\n", argv[0], pages);
		return 1;
	}
	for (uint64_t p = 0; p < pages; p++)
		order[p] = p;
	if (grain > 0)
		shuffle(grain);
	for (uint64_t p = 0; p < pages; p++) {
		uint64_t state = page_seed(order[p]);

		for (int w = 0; w < WORDS; w++)
			memory[p][w] = next_word(&state);
		equal += !is_unique(order[p]);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("{\"pid\": %d, \"address\": %" PRIuPTR ", \"pages\": %" PRIu64 ", \"equal\": %" PRIu64 "}\n", (int)getpid(),
		(uintptr_t)memory, pages, equal);
	while (fgets(line, sizeof(line), stdin))
		if (!answer(line)) {
			fprintf(stderr, "%s: unknown command\n", argv[0]);
			return 2;
		}
	return 0;
}
