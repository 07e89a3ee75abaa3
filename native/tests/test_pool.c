/* SPDX-License-Identifier: MIT */
/* The pool, the page records and the index, against simple models. */
#include "check.h"
#include "index.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void test_a_handed_out_segment_can_be_written_by_us_alone(void)
{
	static char page[PM_PAGE_SIZE], back[PM_PAGE_SIZE];
	struct pm_pool_run run = {0};
	struct pm_segment *segment;
	struct pm_pool pool;
	uint32_t first;
	void *theirs;

	pm_pool_init(&pool);
	CHECK_EQUAL(pm_pool_window(&pool, -1, false, &first), 0);
	segment = pm_pool_segment(&pool, first);
	memset(page, 'a', sizeof(page));
	pm_pool_fill(&pool, &run, first + 3, 7, page);
	CHECK_EQUAL(pm_pool_flush(&pool, &run), 0);
	CHECK_EQUAL(pm_segment_seal(segment), 0);
	CHECK_EQUAL(pm_segment_seal(segment), 0);
	memset(page, 'b', sizeof(page));
	pm_pool_fill(&pool, &run, first + 4, 8, page);
	CHECK_EQUAL(pm_pool_flush(&pool, &run), 0);
	CHECK(pread(segment->fd, back, sizeof(back), 3 * PM_PAGE_SIZE) == PM_PAGE_SIZE && back[9] == 'a');
	CHECK(pread(segment->fd, back, sizeof(back), 4 * PM_PAGE_SIZE) == PM_PAGE_SIZE && back[9] == 'b');
	CHECK(pwrite(segment->fd, page, sizeof(page), 0) < 0);
	CHECK(ftruncate(segment->fd, 0) < 0);
	CHECK(mmap(NULL, PM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, segment->fd, 0) == MAP_FAILED);
	theirs = mmap(NULL, PM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, segment->fd, 0);
	CHECK(theirs != MAP_FAILED);
	munmap(theirs, PM_PAGE_SIZE);
	CHECK(pm_slot_filled(&pool, first + 3) && !pm_slot_filled(&pool, first + 5));
	CHECK(pm_pool_find(&pool, segment->dev, segment->ino) == segment);
	pm_pool_drop(&pool, segment);
	CHECK_EQUAL(pool.written_live, 0);
	pm_pool_deinit(&pool);
}

static void test_windows_follow_each_other(void)
{
	struct pm_pool pool;
	uint32_t before, next;

	pm_pool_init(&pool);
	CHECK_EQUAL(pm_pool_window(&pool, -1, false, &before), 0);
	for (int i = 1; i < 40; i++) {
		CHECK_EQUAL(pm_pool_window(&pool, -1, false, &next), 0);
		if (i % (PM_SEGMENT_PAGES / PM_WINDOW_PAGES))
			CHECK_EQUAL(next, before + PM_WINDOW_PAGES);
		else
			CHECK_EQUAL(pm_slot_position(next), 0);
		before = next;
	}
	CHECK_EQUAL(pool.nsegments, 2);
	pm_pool_deinit(&pool);
	CHECK_EQUAL(pool.metadata, 0);
}

static void test_a_slot_counts_any_number_of_users(void)
{
	static const uint32_t most = 100000;
	struct pm_pool pool;
	uint32_t first;

	pm_pool_init(&pool);
	CHECK_EQUAL(pm_pool_window(&pool, -1, false, &first), 0);
	for (uint32_t slot = first; slot < first + 300; slot += 100)
		for (uint32_t n = 1; n <= most; n++) {
			CHECK_EQUAL(pm_slot_get(&pool, slot), 0);
			if (n % 97 == 0 || n < 200)
				CHECK_EQUAL(pm_slot_users(&pool, slot), n);
		}
	pm_slot_confirm(&pool, first);
	pm_slot_confirm(&pool, first);
	CHECK_EQUAL(pool.shared, 1);
	for (uint32_t slot = first; slot < first + 300; slot += 100)
		for (uint32_t n = most; n; n--) {
			CHECK_EQUAL(pm_slot_put(&pool, slot), n == 1);
			if (n % 97 == 0 || n < 200)
				CHECK_EQUAL(pm_slot_users(&pool, slot), n - 1);
		}
	CHECK_EQUAL(pool.shared, 0);
	CHECK_EQUAL(pool.nmany, 0);
	pm_pool_deinit(&pool);
}

/* Random insertions and removals; the model is the list of what is in. */
static void test_the_index_finds_what_was_put_in(void)
{
	enum { N = 40000, SUMS = 9000 };
	static uint32_t sum_of[N];
	static uint8_t in[N];
	struct pm_chunks chunks = {0};
	struct pm_index index;
	struct pm_pool pool;
	uint32_t count = 0, state = 1;

	pm_pool_init(&pool);
	CHECK_EQUAL(pm_index_init(&index, &chunks, &pool), 0);
	for (uint32_t page = 0; page < N; page += PM_CHUNK_PAGES) {
		struct pm_chunk *chunk;

		CHECK_EQUAL(pm_chunk_create(&chunks, NULL, page * (uint64_t)PM_PAGE_SIZE, 0, PM_CHUNK_PAGES, &chunk), 0);
		CHECK_EQUAL(chunk->id, page / PM_CHUNK_PAGES);
	}
	for (int step = 0; step < 400000; step++) {
		uint32_t page, i;
		struct pm_chunk *chunk;

		state = state * 1664525u + 1013904223u;
		page = (state >> 8) % N;
		chunk = pm_chunk_of(&chunks, page, &i);
		if (in[page]) {
			CHECK(pm_index_remove(&index, page, sum_of[page]));
			CHECK(!pm_index_remove(&index, page, sum_of[page]));
			in[page] = 0;
			count--;
		} else {
			sum_of[page] = (state >> 4) % SUMS * 2654435761u;
			chunk->record[i].sum = sum_of[page];
			pm_index_insert(&index, page, sum_of[page]);
			in[page] = 1;
			count++;
		}
		CHECK_EQUAL(index.count, count);
	}
	for (uint32_t s = 0; s < SUMS; s++) {
		uint32_t found = 0, expected = 0, sum = s * 2654435761u;

		for (uint32_t ref = pm_index_first(&index, sum); ref != PM_REF_NONE; ref = pm_index_next(&index, ref, sum)) {
			CHECK(in[ref] && sum_of[ref] == sum);
			found++;
		}
		for (uint32_t page = 0; s % 500 == 0 && page < N; page++)
			expected += in[page] && sum_of[page] == sum;
		if (s % 500 == 0)
			CHECK_EQUAL(found, expected);
	}
	pm_index_deinit(&index);
	pm_chunks_deinit(&chunks);
	pm_pool_deinit(&pool);
}

static void test_records_grow_to_both_sides(void)
{
	struct pm_chunks chunks = {0};
	struct pm_chunk *chunk;

	CHECK_EQUAL(pm_chunk_create(&chunks, NULL, 0, 100, 10, &chunk), 0);
	chunk->record[3].sum = 77;
	chunk->state[3] = 5;
	CHECK_EQUAL(pm_page_number(chunk, 3), 103);
	CHECK_EQUAL(pm_chunk_extend(&chunks, chunk, 90, 40), 0);
	CHECK_EQUAL(chunk->first, 90);
	CHECK_EQUAL(chunk->n, 40);
	CHECK(chunk->record[13].sum == 77 && chunk->state[13] == 5);
	CHECK_EQUAL(pm_page_number(chunk, 13), 103);
	CHECK_EQUAL(pm_chunk_extend(&chunks, chunk, 95, 5), 0);
	CHECK_EQUAL(chunk->n, 40);
	pm_chunks_deinit(&chunks);
	CHECK_EQUAL(chunks.metadata, 0);
}

int main(void)
{
	test_a_handed_out_segment_can_be_written_by_us_alone();
	test_windows_follow_each_other();
	test_a_slot_counts_any_number_of_users();
	test_the_index_finds_what_was_put_in();
	test_records_grow_to_both_sides();
	return 0;
}
