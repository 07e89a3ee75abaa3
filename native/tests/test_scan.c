/* SPDX-License-Identifier: MIT */
/* The scanner on real processes: what the kernel's ksmd would count, and what no client can make it do. */
#include "check.h"
#include "client.h"


#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pm_scanner scanner;
static bool tracked;

static void begin(void)
{
	CHECK_EQUAL(pm_scanner_init(&scanner), 0);
	pm_set_knob(&scanner, "smart_scan", 0);
}

static void finish(struct client *clients, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		client_stop(&clients[i]);
		pm_mm_remove(&scanner, pm_mm_find(&scanner, clients[i].number));
	}
	CHECK_EQUAL(counter(&scanner, "rmap_items"), 0);
	CHECK_EQUAL(counter(&scanner, "pages_shared"), 0);
	CHECK_EQUAL(counter(&scanner, "stable_node_dups"), 0);
	for (int i = 0; i < 3; i++)
		pm_end_pass(&scanner);
	CHECK_EQUAL(counter(&scanner, "segments"), 0);
	CHECK_EQUAL(scanner.index.count, 0);
	pm_scanner_deinit(&scanner);
}

#define EXPECT(shared, sharing, unshared, unstable, zero)                      \
	do {                                                                   \
		CHECK_EQUAL(counter(&scanner, "pages_shared"), shared);        \
		CHECK_EQUAL(counter(&scanner, "pages_sharing"), sharing);      \
		CHECK_EQUAL(counter(&scanner, "pages_unshared"), unshared);    \
		CHECK_EQUAL(counter(&scanner, "pages_volatile"), unstable);    \
		CHECK_EQUAL(counter(&scanner, "ksm_zero_pages"), zero);        \
	} while (0)

static void test_equal_pages_merge_in_the_second_pass(void)
{
	struct client c;

	begin();
	client_start(&c, 11);
	for (uint64_t i = 0; i < 10; i++)
		client_fill(&c, i, 5);
	client_add(&scanner, &c, 1, 0, tracked);
	pass(&scanner, &c, 1);
	EXPECT(0, 0, 0, 10, 0);
	pass(&scanner, &c, 1);
	EXPECT(1, 9, 0, 0, 0);
	pass(&scanner, &c, 1);
	EXPECT(1, 9, 0, 0, 0);
	client_fill(&c, 10, 5);
	pass(&scanner, &c, 1);
	EXPECT(1, 9, 0, 1, 0);
	pass(&scanner, &c, 1);
	EXPECT(1, 10, 0, 0, 0);
	client_fill(&c, 4, 6);
	pass(&scanner, &c, 1);
	EXPECT(1, 9, 0, 1, 0);
	pass(&scanner, &c, 1);
	EXPECT(1, 9, 1, 0, 0);
	CHECK_EQUAL(counter(&scanner, "breaks"), 1);
	finish(&c, 1);
}

static void test_distinct_pages_stay_unshared_and_changing_ones_volatile(void)
{
	struct client c;
	uint64_t read;

	begin();
	client_start(&c, 8);
	for (uint64_t i = 0; i < 8; i++)
		client_fill(&c, i, i + 1);
	client_add(&scanner, &c, 1, 0, tracked);
	pass(&scanner, &c, 1);
	EXPECT(0, 0, 0, 8, 0);
	for (uint64_t i = 0; i < 6; i++) {
		client_fill(&c, 7, 100 + i);
		pass(&scanner, &c, 1);
		EXPECT(0, 0, 7, 1, 0);
	}
	pass(&scanner, &c, 1);
	read = scanner.counts.bytes_read;
	pass(&scanner, &c, 1);
	if (tracked) /* what has not changed is never read again */
		CHECK_EQUAL(scanner.counts.bytes_read, read);
	finish(&c, 1);
}

static void test_the_sharing_limit_gives_the_kernels_counts(void)
{
	for (uint64_t n = 9; n <= 31; n++) {
		uint64_t full = n / 10, rest = n % 10;
		int64_t shared = (int64_t)(full + (rest >= 2)), unshared = rest == 1;
		struct client c;

		begin();
		pm_set_knob(&scanner, "max_page_sharing", 10);
		client_start(&c, n);
		for (uint64_t i = 0; i < n; i++)
			client_fill(&c, i, 5);
		client_add(&scanner, &c, 1, 0, tracked);
		for (int i = 0; i < 4; i++)
			pass(&scanner, &c, 1);
		EXPECT(shared, (int64_t)n - unshared - shared, unshared, 0, 0);
		CHECK_EQUAL(counter(&scanner, "stable_node_chains"), shared > 1);
		CHECK_EQUAL(counter(&scanner, "stable_node_dups"), shared > 1 ? shared : 0);
		finish(&c, 1);
	}
}

static void test_zero_pages_need_no_pool(void)
{
	struct client c;

	begin();
	pm_set_knob(&scanner, "use_zero_pages", 1);
	client_start(&c, 16);
	for (uint64_t i = 0; i < 16; i++)
		client_fill(&c, i, 0);
	client_add(&scanner, &c, 1, 0, tracked);
	pass(&scanner, &c, 1);
	EXPECT(0, 0, 0, 16, 0);
	pass(&scanner, &c, 1);
	EXPECT(0, 0, 0, 16, 16);
	pass(&scanner, &c, 1);
	EXPECT(0, 0, 0, 0, 16);
	CHECK_EQUAL(counter(&scanner, "rmap_items"), 0);
	CHECK_EQUAL(counter(&scanner, "segments"), 0);
	client_fill(&c, 3, 9);
	pass(&scanner, &c, 1);
	EXPECT(0, 0, 0, 1, 15);
	pm_mm_gone(&scanner, pm_mm_find(&scanner, 1), c.memory, c.memory + 2 * PM_PAGE_SIZE,
		   PM_GONE_DISCARDED);
	CHECK_EQUAL(counter(&scanner, "ksm_zero_pages"), 13);
	finish(&c, 1);
}

/* Two processes alike but for every seventh page: one mapping for each 2 MiB, and the others' pages stay theirs. */
static void test_like_regions_are_mapped_whole(void)
{
	enum { PAGES = 2048 };
	struct client c[2];
	uint64_t own = 0;

	begin();
	for (int k = 0; k < 2; k++) {
		client_start(&c[k], PAGES);
		for (uint64_t i = 0; i < PAGES; i++)
			client_fill(&c[k], i, i % 7 == 3 ? 1000000 * (unsigned int)(k + 1) + i : i + 1);
		client_add(&scanner, &c[k], (uint64_t)k + 1, 0, tracked);
	}
	for (uint64_t i = 0; i < PAGES; i++)
		own += i % 7 == 3;
	for (int i = 0; i < 4; i++)
		pass(&scanner, c, 2);
	EXPECT(PAGES - own, PAGES - own, 2 * own, 0, 0);
	CHECK(pm_mm_find(&scanner, 1)->nparts < 20);
	CHECK(pm_mm_find(&scanner, 2)->nparts < 20);
	CHECK_EQUAL(counter(&scanner, "merge_failures_differs"), 0);
	CHECK(client_sum(&c[0], 5) == client_sum(&c[1], 5));
	CHECK(client_sum(&c[0], 3) != client_sum(&c[1], 3));
	client_unmap(&c[1], 0, PAGES / 2);
	pm_mm_gone(&scanner, pm_mm_find(&scanner, 2), c[1].memory, c[1].memory + PAGES / 2 * PM_PAGE_SIZE,
		   PM_GONE_UNMAPPED);
	pass(&scanner, c, 2);
	CHECK(counter(&scanner, "pages_sharing") < (int64_t)(PAGES - own));
	CHECK_EQUAL(counter(&scanner, "pages_shared"), PAGES - own);
	finish(c, 2);
}

static void test_run_2_asks_everything_back(void)
{
	struct client c;

	begin();
	client_start(&c, 600);
	for (uint64_t i = 0; i < 600; i++)
		client_fill(&c, i, 1 + i / 2);
	client_add(&scanner, &c, 1, 0, tracked);
	pass(&scanner, &c, 1);
	pass(&scanner, &c, 1);
	EXPECT(300, 300, 0, 0, 0);
	pm_unmerge_all(&scanner);
	client_serve(&scanner, &c);
	EXPECT(0, 0, 0, 0, 0);
	CHECK_EQUAL(counter(&scanner, "rmap_items"), 0);
	pass(&scanner, &c, 1);
	pass(&scanner, &c, 1);
	EXPECT(300, 300, 0, 0, 0);
	finish(&c, 1);
}

static void test_a_mostly_dead_segment_is_emptied_into_another(void)
{
	enum { PAGES = 1024 };
	struct client c[3];

	begin();
	for (int k = 0; k < 3; k++) {
		client_start(&c[k], PAGES);
		for (uint64_t i = 0; i < PAGES; i++)
			client_fill(&c[k], i, i + 1);
		client_add(&scanner, &c[k], (uint64_t)k + 1, 0, tracked);
	}
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 3);
	EXPECT(PAGES, 2 * PAGES, 0, 0, 0);
	for (int k = 0; k < 3; k++)
		for (uint64_t i = 0; i < PAGES / 2; i++)
			client_fill(&c[k], i, 5000 + i + (unsigned int)k * PAGES);
	/* One more page that only one has left: it can't be merged elsewhere, and is given back. */
	client_fill(&c[0], PAGES - 1, 9000);
	client_fill(&c[1], PAGES - 1, 9001);
	for (int i = 0; i < 12; i++)
		pass(&scanner, c, 3);
	CHECK_EQUAL(counter(&scanner, "segments_retired"), 1);
	CHECK_EQUAL(counter(&scanner, "segments_dropped"), 1);
	CHECK(counter(&scanner, "unmerge_requests") > 0); /* for what is alone, and for private copies */
	for (int k = 0; k < 3; k++)
		CHECK(!pm_mm_find(&scanner, (uint64_t)k + 1)->foreign);
	EXPECT(PAGES / 2 - 1, PAGES - 2, PAGES / 2 * 3 + 3, 0, 0);
	for (uint64_t i = PAGES / 2; i < PAGES - 1; i++)
		CHECK(client_sum(&c[0], i) == client_sum(&c[2], i));
	finish(c, 3);
}

static void test_pages_of_a_fork(void)
{
	struct client c[2];

	begin();
	client_start(&c[0], 64);
	for (uint64_t i = 0; i < 64; i++)
		client_fill(&c[0], i, 1 + i);
	client_add(&scanner, &c[0], 1, 0, tracked);
	client_fork(&c[0], &c[1]);
	client_add(&scanner, &c[1], 2, 1, tracked);
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 2);
	EXPECT(0, 0, 64, 64, 0); /* the very same pages: nothing to save */
	for (uint64_t i = 0; i < 64; i++)
		client_fill(&c[1], i, 100 + i / 2);
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 2);
	EXPECT(32, 32, 64, 0, 0);
	finish(c, 2);
}

static void test_a_forked_child_keeps_what_was_merged(void)
{
	struct client c[2];

	begin();
	client_start(&c[0], 64);
	for (uint64_t i = 0; i < 64; i++)
		client_fill(&c[0], i, 1 + i / 2);
	client_add(&scanner, &c[0], 1, 0, tracked);
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 1);
	EXPECT(32, 32, 0, 0, 0);
	client_fork(&c[0], &c[1]);
	client_add(&scanner, &c[1], 2, 1, tracked);
	pass(&scanner, c, 2);
	EXPECT(32, 96, 0, 0, 0); /* in one pass, as the kernel's */
	finish(c, 2);
}

static void test_smart_scan_looks_at_old_pages_ever_more_rarely(void)
{
	static const unsigned int looks[] = {1, 2, 3, 4, 6, 9, 14, 23, 32, 41};
	struct client c;
	size_t at = 0;

	begin();
	pm_set_knob(&scanner, "smart_scan", 1);
	client_start(&c, 1);
	client_fill(&c, 0, 7);
	client_add(&scanner, &c, 1, 0, tracked);
	for (unsigned int i = 1; i <= 41; i++) {
		uint64_t before = scanner.counts.pages_scanned;

		pass(&scanner, &c, 1);
		if (looks[at] == i)
			at++;
		CHECK_EQUAL(scanner.counts.pages_scanned - before, at && looks[at - 1] == i);
		CHECK_EQUAL(scanner.counts.pages_scanned + scanner.counts.pages_skipped, i);
	}
	finish(&c, 1);
}

static void test_nonsense_from_a_client_changes_nothing_of_others(void)
{
	struct {
		struct pm_header header;
		struct pm_result result;
		struct pm_failed failed[3];
	} lie = {.header = {.type = PM_RESULT, .count = 3},
		 .failed = {{0, UINT32_MAX, 1}, {UINT64_MAX - 4095, UINT32_MAX, 99}, {0x1000, 0, 2}}};
	struct pm_request_out out;
	struct client c[2];
	struct pm_mm *mm;
	uint64_t scanned;
	bool done = false;

	begin();
	for (int k = 0; k < 2; k++) {
		client_start(&c[k], 32);
		for (uint64_t i = 0; i < 32; i++)
			client_fill(&c[k], i, 1 + i);
		client_add(&scanner, &c[k], (uint64_t)k + 1, 0, tracked);
	}
	pass(&scanner, c, 2);
	pm_begin_pass(&scanner);
	for (uint64_t k = 1; k <= 2; k++) {
		mm = pm_mm_find(&scanner, k);
		CHECK_EQUAL(pm_mm_begin(&scanner, mm), 1);
		for (done = false; !done;)
			CHECK_EQUAL(pm_mm_scan(&scanner, mm, 1000, &scanned, &done), 0);
	}
	CHECK_EQUAL(pm_mm_take(&scanner, mm, &out), 1);
	lie.header.seq = out.seq + 1;
	CHECK_EQUAL(pm_mm_answer(&scanner, mm, &lie, sizeof(lie)), -EINVAL);
	lie.header.seq = out.seq;
	CHECK_EQUAL(pm_mm_answer(&scanner, pm_mm_find(&scanner, 1), &lie, sizeof(lie)), -EINVAL);
	CHECK_EQUAL(pm_mm_answer(&scanner, mm, &lie, sizeof(lie) - 1), -EINVAL);
	CHECK_EQUAL(pm_mm_answer(&scanner, mm, &lie, 3), -EINVAL);
	CHECK_EQUAL(pm_mm_answer(&scanner, mm, &lie, sizeof(lie)), 0); /* it claims that some were merged */
	CHECK_EQUAL(pm_mm_answer(&scanner, mm, &lie, sizeof(lie)), -EINVAL);
	for (int i = 0; i < 5; i++)
		pass(&scanner, c, 2);
	EXPECT(32, 32, 0, 0, 0); /* /proc/PID/maps told, and it was asked again */
	finish(c, 2);
}

static void test_a_process_that_vanishes(void)
{
	struct client c[2];
	struct pm_mm *mm;
	uint64_t scanned;
	bool done;

	begin();
	for (int k = 0; k < 2; k++) {
		client_start(&c[k], 512);
		for (uint64_t i = 0; i < 512; i++)
			client_fill(&c[k], i, 1 + i);
		client_add(&scanner, &c[k], (uint64_t)k + 1, 0, tracked);
	}
	pass(&scanner, c, 2);
	pm_begin_pass(&scanner);
	mm = pm_mm_find(&scanner, 2);
	CHECK_EQUAL(pm_mm_begin(&scanner, mm), 1);
	CHECK_EQUAL(pm_mm_scan(&scanner, mm, 100, &scanned, &done), 0);
	kill(c[1].pid, SIGKILL);
	CHECK(waitpid(c[1].pid, NULL, 0) == c[1].pid);
	for (done = false; !done;) {
		int err = pm_mm_scan(&scanner, mm, 100, &scanned, &done);

		CHECK(err == 0 || err == -ESRCH);
	}
	mm->stale = true;
	CHECK_EQUAL(pm_mm_begin(&scanner, mm), -ESRCH);
	pm_mm_remove(&scanner, mm);
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 1);
	EXPECT(0, 0, 512, 0, 0);
	client_stop(&c[1]);
	finish(c, 1);
}

static void test_a_lost_connection_forgets_what_was_asked(void)
{
	struct pm_request_out out;
	struct client c;
	struct pm_mm *mm;
	uint64_t scanned;
	bool done = false;

	begin();
	client_start(&c, 64);
	for (uint64_t i = 0; i < 64; i++)
		client_fill(&c, i, 1 + i / 2);
	client_add(&scanner, &c, 1, 0, tracked);
	mm = pm_mm_find(&scanner, 1);
	pass(&scanner, &c, 1);
	pm_begin_pass(&scanner);
	pm_mm_begin(&scanner, mm);
	while (!done)
		pm_mm_scan(&scanner, mm, 1000, &scanned, &done);
	CHECK_EQUAL(pm_mm_take(&scanner, mm, &out), 1);
	pm_mm_lost(&scanner, mm);
	EXPECT(0, 0, 0, 64, 0);
	for (int i = 0; i < 3; i++)
		pass(&scanner, &c, 1);
	EXPECT(32, 32, 0, 0, 0);
	finish(&c, 1);
}

enum { GIVEN = 2048, OWN = 10 };
static char late[PM_MESSAGE_MAX];

/* Two processes that hash and write their own pages; each OWN-th page is one's own. */
static void add_givers(struct client *c)
{
	for (uint64_t k = 0; k < 2; k++) {
		client_start(&c[k], GIVEN);
		for (uint64_t i = 0; i < GIVEN; i++)
			client_fill(&c[k], i, 1 + i + (i % OWN ? 0 : (k + 1) * 1000000));
		client_add(&scanner, &c[k], k + 1, 0, true);
		pm_mm_find(&scanner, k + 1)->gives = true;
	}
}

static void start_givers(struct client *c)
{
	begin();
	add_givers(c);
}

static void check_givers(struct client *c)
{
	const int64_t equal = GIVEN - (GIVEN + OWN - 1) / OWN, own = 2 * (GIVEN - equal);

	EXPECT(equal, equal, own, 0, 0);
	for (uint64_t i = 0; i < GIVEN; i += 7)
		CHECK((client_sum(&c[0], i) == client_sum(&c[1], i)) == (i % OWN != 0));
}

static void test_processes_write_their_own_pages(void)
{
	struct client c[2];
	uint64_t written = 0;

	start_givers(c);
	for (int i = 0; i < 5; i++) /* pages between merged ones are copied, and looked at anew */
		pass(&scanner, c, 2);
	check_givers(c);
	for (uint32_t id = 0; id < scanner.pool.nsegments; id++) {
		const struct pm_segment *segment = scanner.pool.segments[id];

		if (!segment || !segment->donor)
			continue;
		CHECK(!segment->open);
		CHECK(fcntl(segment->fd, F_GET_SEALS) & F_SEAL_WRITE);
		CHECK(pwrite(segment->fd, "x", 1, 0) < 0);
		written += segment->written;
	}
	CHECK(written > GIVEN / 2);
	client_fill(&c[1], 5, 77);
	pass(&scanner, c, 2);
	CHECK(client_sum(&c[0], 5) != client_sum(&c[1], 5));
	finish(c, 2);
}

/* What was given back is looked at anew, segments that are mostly unused are emptied, and long lists of mappings are not read with each pass. */
static void settle(struct client *c, size_t n, int64_t sharing)
{
	for (int turn = 0; turn < 2000; turn++) {
		pass(&scanner, c, n);
		if (counter(&scanner, "pages_sharing") == sharing && !counter(&scanner, "pages_volatile"))
			return;
		usleep(5000);
	}
}

static void test_pages_that_are_equal_but_for_a_byte_are_soon_hashed_whole(void)
{
	enum { THIRD = 64 };
	struct client c[3];

	begin();
	for (uint64_t k = 0; k < 2; k++) {
		client_start(&c[k], GIVEN);
		for (uint64_t i = 0; i < GIVEN; i++) {
			client_fill(&c[k], i, 1 + i);
			if (k && i >= THIRD && i % 2)
				client_poke(&c[k], i, i * 67 % PM_PAGE_SIZE);
		}
		client_add(&scanner, &c[k], k + 1, 0, true);
		pm_mm_find(&scanner, k + 1)->gives = true;
	}
	settle(c, 2, (GIVEN + THIRD) / 2);
	EXPECT((GIVEN + THIRD) / 2, (GIVEN + THIRD) / 2, GIVEN - THIRD, 0, 0);
	CHECK(scanner.whole);
	CHECK(scanner.counts.failed[PM_FAIL_DIFFERS] < (GIVEN - THIRD) / 4);

	client_start(&c[2], GIVEN); /* and who comes later finds what was merged by samples, too */
	for (uint64_t i = 0; i < GIVEN; i++)
		client_fill(&c[2], i, 1 + i);
	client_add(&scanner, &c[2], 3, 0, true);
	settle(c, 3, GIVEN + (GIVEN + THIRD) / 2);
	EXPECT(GIVEN, GIVEN + (GIVEN + THIRD) / 2, (GIVEN - THIRD) / 2, 0, 0);
	finish(c, 3);
	CHECK(!scanner.whole);
}

/* Two pages that differ where the samples do not show it: one of them has been merged with nobody when that turns out. */
static void test_who_is_at_work_is_not_asked_back_for_what_is_merged_with_nobody(void)
{
	enum { ODD = 8 };

	for (int at_work = 0; at_work < 2; at_work++) {
		struct client c[2];

		begin();
		for (uint64_t k = 0; k < 2; k++) {
			client_start(&c[k], GIVEN);
			for (uint64_t i = 0; i < GIVEN; i++) {
				client_fill(&c[k], i, 1 + i);
				if (k && i < ODD)
					client_poke(&c[k], i, i * 67 % PM_PAGE_SIZE);
			}
			client_add(&scanner, &c[k], k + 1, 0, true);
			pm_mm_find(&scanner, k + 1)->gives = true;
			c[k].at_work = at_work;
		}
		settle(c, 2, GIVEN - ODD);
		CHECK_EQUAL(counter(&scanner, "pages_sharing"), GIVEN - ODD);
		CHECK(scanner.counts.failed[PM_FAIL_DIFFERS] > 0);
		if (at_work) {
			CHECK(counter(&scanner, "pages_shared") > GIVEN - ODD);
			CHECK_EQUAL(counter(&scanner, "unmerge_requests"), 0);
		} else {
			CHECK_EQUAL(counter(&scanner, "pages_shared"), GIVEN - ODD);
			CHECK(counter(&scanner, "unmerge_requests") > 0);
		}
		finish(c, 2);
	}
}

/* Scan both, up to where the second has been asked to write to the pool, and has not answered. */
static struct pm_request_out stop_in_the_middle(struct client *c)
{
	struct pm_mm *mm = pm_mm_find(&scanner, 2);
	struct pm_request_out out;
	uint64_t scanned;

	pass(&scanner, c, 2);
	pm_begin_pass(&scanner);
	for (uint64_t k = 0; k < 2; k++) {
		struct pm_mm *one = pm_mm_find(&scanner, k + 1);

		CHECK_EQUAL(pm_mm_begin(&scanner, one), 1);
		for (bool done = false; !done;) {
			CHECK_EQUAL(pm_mm_scan(&scanner, one, 700, &scanned, &done), 0);
			while (one->to_hash) {
				CHECK_EQUAL(pm_mm_take(&scanner, one, &out), 1);
				CHECK_EQUAL(((const struct pm_header *)(const void *)out.datagram)->type, PM_HASH);
				client_do(&scanner, &c[k], &out);
			}
		}
	}
	CHECK_EQUAL(pm_mm_take(&scanner, mm, &out), 1);
	CHECK_EQUAL(((const struct pm_header *)(const void *)out.datagram)->type, PM_GIVE);
	return out;
}

static void test_who_is_lost_while_writing_leaves_nothing_wrong(void)
{
	struct client c[2];

	start_givers(c);
	stop_in_the_middle(c);
	pm_mm_lost(&scanner, pm_mm_find(&scanner, 2)); /* what was to be written is not there */
	for (int i = 0; i < 5; i++)
		pass(&scanner, c, 2);
	check_givers(c);
	finish(c, 2);
}

static void test_who_does_not_answer_while_writing_is_not_waited_for(void)
{
	struct pm_request_out out;
	struct client c[2];
	struct pm_mm *mm;

	start_givers(c);
	out = stop_in_the_middle(c);
	mm = pm_mm_find(&scanner, 2);
	out.datagram = memcpy(late, out.datagram, out.length);
	pm_give_stop(&scanner, mm);
	CHECK_EQUAL(scanner.hashing, 0);
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 1);
	client_do(&scanner, &c[1], &out); /* the segment is closed by now: it can write nothing */
	mm->gives = true;
	for (int i = 0; i < 5; i++)
		pass(&scanner, c, 2);
	check_givers(c);
	finish(c, 2);
}

/* The number of a segment that was given back is the next one's, which may be one that a process writes. */
static void test_a_dropped_segment_leaves_no_window_behind(void)
{
	enum { EQUAL = 20, PAIRS = 300 };
	struct client c[3];
	uint64_t first;

	begin();
	client_start(&c[2], GIVEN);
	client_add(&scanner, &c[2], 3, 0, true);
	first = -(c[2].memory / PM_PAGE_SIZE) % PM_WINDOW_PAGES; /* where a stretch begins */
	for (uint64_t i = 0; i < PAIRS; i++) {
		client_fill(&c[2], first + i, 5000000 + i); /* in two stretches: in a window in their order */
		client_fill(&c[2], first + PM_WINDOW_PAGES + i, 5000000 + i);
	}
	for (uint64_t i = 0; i < EQUAL; i++) /* in one: elsewhere */
		client_fill(&c[2], first + 2 * PM_WINDOW_PAGES + i, 6000000);
	pass(&scanner, &c[2], 1);
	pass(&scanner, &c[2], 1);
	EXPECT(PAIRS + 1, PAIRS + EQUAL - 1, 0, 0, 0);
	CHECK_EQUAL(counter(&scanner, "segments"), 2);
	for (uint64_t i = 0; i < 2 * PM_WINDOW_PAGES + EQUAL; i++)
		client_fill(&c[2], first + i, 7000000 + i);
	for (int i = 0; i < 4; i++)
		pass(&scanner, &c[2], 1);
	CHECK_EQUAL(counter(&scanner, "segments"), 0);
	add_givers(c);
	for (int i = 0; i < 5; i++)
		pass(&scanner, c, 2);
	for (uint64_t i = 0; i < EQUAL; i++)
		client_fill(&c[2], first + 2 * PM_WINDOW_PAGES + i, 6000000);
	for (int i = 0; i < 3; i++)
		pass(&scanner, c, 3);
	CHECK_EQUAL(counter(&scanner, "pages_sharing"), EQUAL - 1 + GIVEN - (GIVEN + OWN - 1) / OWN);
	CHECK_EQUAL(counter(&scanner, "merge_failures_differs"), 0);
	CHECK_EQUAL(counter(&scanner, "write_errors"), 0);
	finish(c, 3);
}

static void test_a_huge_empty_region_costs_nothing(void)
{
	struct client c;

	begin();
	client_start(&c, (uint64_t)64 << 18); /* 64 GiB */
	for (uint64_t i = 0; i < 10; i++)
		client_fill(&c, i << 20, 5);
	client_add(&scanner, &c, 1, 0, tracked);
	for (int i = 0; i < (tracked ? 3 : 0); i++)
		pass(&scanner, &c, 1);
	if (tracked)
		EXPECT(1, 9, 0, 0, 0);
	CHECK(counter(&scanner, "metadata_bytes") < 400000);
	finish(&c, 1);
}

int main(void)
{
	for (int round = 0; round < 2; round++) {
		tracked = round == 0;
		test_equal_pages_merge_in_the_second_pass();
		test_distinct_pages_stay_unshared_and_changing_ones_volatile();
		test_the_sharing_limit_gives_the_kernels_counts();
		test_zero_pages_need_no_pool();
		test_like_regions_are_mapped_whole();
		test_run_2_asks_everything_back();
		test_a_mostly_dead_segment_is_emptied_into_another();
		test_pages_of_a_fork();
		test_a_forked_child_keeps_what_was_merged();
		test_smart_scan_looks_at_old_pages_ever_more_rarely();
		test_nonsense_from_a_client_changes_nothing_of_others();
		test_a_process_that_vanishes();
		test_a_lost_connection_forgets_what_was_asked();
		test_a_huge_empty_region_costs_nothing();
	}
	test_processes_write_their_own_pages();
	test_pages_that_are_equal_but_for_a_byte_are_soon_hashed_whole();
	test_who_is_at_work_is_not_asked_back_for_what_is_merged_with_nobody();
	test_who_is_lost_while_writing_leaves_nothing_wrong();
	test_who_does_not_answer_while_writing_is_not_waited_for();
	test_a_dropped_segment_leaves_no_window_behind();
	return 0;
}
