/* SPDX-License-Identifier: MIT */
/*
 * pm_message_check against datagrams made from good ones by chance.  Each lies in a heap block of exactly its size, so that AddressSanitizer sees a
 * read beyond it; what is accepted must have the properties that the agent and the daemon rely on, looked at here once more, in a plain way.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto.h"
#include "protocol.h"
#include "sys.h"

enum { ROUNDS = 300000, ENTRIES_MOST = 12 };

static uint64_t state = 88172645463325252ULL;

static uint32_t chance(uint32_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32) % below;
}

#define CHECK(condition)                                                            \
	do {                                                                        \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                    \
		}                                                                   \
	} while (0)

static size_t make_merge(unsigned char *out)
{
	struct pm_header header = { .type = chance(2) ? PM_MERGE : PM_GIVE };
	struct pm_run runs[ENTRIES_MOST], *run = runs;
	uint32_t wanted = 1 + chance(ENTRIES_MOST);

	for (uint32_t i = 0; i < wanted; i++, run++) {
		bool joined = i && chance(2);

		*run = (struct pm_run){ .addr = (1 + (uint64_t)chance(1u << 30)) << 12, .npages = 1 + chance(40),
					.segment = chance(PM_FDS_MAX), .pgoff = chance(1 << 14) };
		if (joined) {
			run->addr = run[-1].addr + (uint64_t)run[-1].npages * PM_PAGE_SIZE;
			run->pgoff = run[-1].pgoff + run[-1].npages;
			run->segment = run[-1].segment;
			run->flags = PM_RUN_JOINED | (run[-1].flags & PM_RUN_GAP || i + 1 == wanted ? 0 : PM_RUN_GAP * chance(2));
		} else if (i && run[-1].flags & PM_RUN_GAP) {
			run[-1].flags = PM_RUN_JOINED;
		}
	}
	header.count = wanted;
	memcpy(out, &header, sizeof(header));
	memcpy(out + sizeof(header), runs, wanted * sizeof(*runs));
	return sizeof(header) + wanted * sizeof(*runs);
}

static size_t make_ranges(unsigned char *out, uint32_t type)
{
	struct pm_header header = { .type = type, .count = chance(ENTRIES_MOST) };
	size_t at = sizeof(header);

	memcpy(out, &header, sizeof(header));
	for (uint32_t i = 0; i < header.count; i++, at += sizeof(struct pm_range)) {
		uint64_t start = (uint64_t)chance(1u << 30) << 12;
		struct pm_range range = { start, start + ((1 + (uint64_t)chance(type == PM_HASH ? PM_HASH_PAGES / ENTRIES_MOST : 1000)) << 12), chance(type == PM_ADVISE ? 3 : 5), 0 };

		memcpy(out + at, &range, sizeof(range));
	}
	return at;
}

static size_t make_result(unsigned char *out)
{
	struct pm_header header = { .type = PM_RESULT, .count = chance(ENTRIES_MOST) };
	struct pm_result result = { .merged = chance(1000) };
	size_t at = sizeof(header) + sizeof(result);

	memcpy(out, &header, sizeof(header));
	memcpy(out + sizeof(header), &result, sizeof(result));
	for (uint32_t i = 0; i < header.count; i++, at += sizeof(struct pm_failed)) {
		struct pm_failed failed = { (uint64_t)chance(1u << 30) << 12, 1 + chance(100), 1 + chance(PM_FAIL_SYSTEM) };

		memcpy(out + at, &failed, sizeof(failed));
	}
	return at;
}

static size_t make_hello(unsigned char *out)
{
	struct pm_header header = { .type = PM_HELLO, .count = 1 };
	struct pm_hello hello = { .version = PM_PROTOCOL_VERSION, .page_size = PM_PAGE_SIZE, .domain = "d", .refusal = "" };

	memcpy(out, &header, sizeof(header));
	memcpy(out + sizeof(header), &hello, sizeof(hello));
	return sizeof(header) + sizeof(hello);
}

static size_t make_hashes(unsigned char *out)
{
	struct pm_header header = { .type = PM_HASHES, .count = chance(ENTRIES_MOST) };
	size_t bytes = sizeof(header) + sizeof(struct pm_hashes) + header.count * sizeof(uint64_t);

	memset(out, 1, bytes);
	memcpy(out, &header, sizeof(header));
	return bytes;
}

static size_t make(unsigned char *out, bool *to_daemon)
{
	static const uint32_t ranges_up[] = { PM_MARK, PM_GONE }, ranges_down[] = { PM_UNMERGE, PM_ZERO, PM_ADVISE, PM_HASH };

	*to_daemon = chance(2);
	if (*to_daemon)
		switch (chance(4)) {
		case 3: return make_hashes(out);
		case 0: return make_hello(out);
		case 1: return make_result(out);
		default: return make_ranges(out, ranges_up[chance(2)]);
		}
	return chance(4) ? make_merge(out) : make_ranges(out, ranges_down[chance(4)]);
}

static void mutate(unsigned char *datagram, size_t *length)
{
	static const uint64_t telling[] = { 0, 1, 4095, 4096, 1ULL << 31, 1ULL << 47, 1ULL << 56, UINT64_MAX, UINT64_MAX - 4095 };

	for (uint32_t times = 1 + chance(3); times; times--)
		switch (chance(4)) {
		case 0:
			datagram[chance((uint32_t)*length)] ^= (unsigned char)(1u << chance(8));
			break;
		case 1: {
			uint64_t value = telling[chance(9)];
			size_t width = chance(2) ? 4 : 8;

			if (*length >= width)
				memcpy(datagram + chance((uint32_t)(*length - width + 1)) / width * width, &value, width);
			break;
		}
		case 2:
			*length = 1 + chance((uint32_t)*length);
			break;
		default: /* an entry twice */
			if (*length > sizeof(struct pm_header) + sizeof(struct pm_run)) {
				memmove(datagram + sizeof(struct pm_header) + sizeof(struct pm_run), datagram + sizeof(struct pm_header),
					sizeof(struct pm_run));
			}
		}
}

/* What replace.c takes for granted. */
static void look_at_runs(const unsigned char *datagram, size_t length)
{
	struct pm_header header;
	struct pm_run run, before = { 0 };
	uint64_t pages = 0;

	memcpy(&header, datagram, sizeof(header));
	CHECK(length == sizeof(header) + header.count * sizeof(run));
	for (uint32_t i = 0; i < header.count; i++, before = run) {
		memcpy(&run, datagram + sizeof(header) + i * sizeof(run), sizeof(run));
		bool joined = run.flags & PM_RUN_JOINED, gap = run.flags & PM_RUN_GAP;

		CHECK(run.addr && run.addr % PM_PAGE_SIZE == 0 && run.addr + (uint64_t)run.npages * PM_PAGE_SIZE > run.addr);
		CHECK(run.npages && run.segment < PM_FDS_MAX);
		pages = joined ? pages + run.npages : run.npages;
		CHECK(pages <= 512);
		CHECK(!gap || (joined && i + 1 < header.count));
		CHECK(joined || !(before.flags & PM_RUN_GAP));
		if (joined)
			CHECK(i && run.addr == before.addr + (uint64_t)before.npages * PM_PAGE_SIZE &&
			      run.pgoff == before.pgoff + before.npages && run.segment == before.segment);
	}
}

static void look_at_ranges(const unsigned char *datagram, size_t length)
{
	struct pm_header header;
	struct pm_range range;

	memcpy(&header, datagram, sizeof(header));
	CHECK(length == sizeof(header) + header.count * sizeof(range));
	for (uint32_t i = 0; i < header.count; i++) {
		memcpy(&range, datagram + sizeof(header) + i * sizeof(range), sizeof(range));
		CHECK(range.start < range.end && (range.start | range.end) % PM_PAGE_SIZE == 0);
	}
}

int main(void)
{
	static unsigned char space[PM_MESSAGE_MAX];
	uint32_t good = 0, bad = 0;

	for (int round = 0; round < ROUNDS; round++) {
		bool to_daemon;
		size_t length = make(space, &to_daemon);
		const char *reason = "";

		CHECK(pm_message_check(space, length, to_daemon, &reason) == 0 && !reason);
		CHECK(pm_message_check(space, length, !to_daemon, &reason) == -EBADMSG && reason);
		mutate(space, &length);
		unsigned char *exact = malloc(length);
		CHECK(exact);
		memcpy(exact, space, length);
		if (pm_message_check(exact, length, to_daemon, &reason)) {
			CHECK(reason && *reason);
			bad++;
		} else {
			struct pm_header header;

			memcpy(&header, exact, sizeof(header));
			if (header.type == PM_MERGE || header.type == PM_GIVE)
				look_at_runs(exact, length);
			if (header.type == PM_UNMERGE || header.type == PM_ZERO || header.type == PM_ADVISE || header.type == PM_HASH || header.type == PM_MARK || header.type == PM_GONE)
				look_at_ranges(exact, length);
			good++;
		}
		free(exact);
	}
	printf("%u taken, %u refused\n", good, bad);
	CHECK(good > ROUNDS / 100 && bad > ROUNDS / 10);
	return 0;
}
