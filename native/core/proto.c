/* SPDX-License-Identifier: MIT */
/* Whether a datagram is what protocol.h says: every number in its bounds, before anybody acts on one. */
#include "proto.h"

#include <errno.h>
#include <string.h>

#include "protocol.h"
#include "sys.h"

static const uint64_t ADDRESS_MAX = 1ULL << 56;
enum { GROUP_PAGES_MAX = 512, SLOTS_MAX = 1 << 24 };

static const char *check_range(const struct pm_range *range, uint32_t flags_most)
{
	if ((range->start | range->end) % PM_PAGE_SIZE)
		return "a range that is not page aligned";
	if (range->start >= range->end || range->end > ADDRESS_MAX)
		return "a range that is empty or out of bounds";
	if (range->flags > flags_most)
		return "a range of unknown kind";
	return NULL;
}

static const char *check_ranges(const unsigned char *body, uint32_t count, uint32_t flags_most)
{
	for (uint32_t i = 0; i < count; i++) {
		struct pm_range range;

		memcpy(&range, body + i * sizeof(range), sizeof(range));
		const char *reason = check_range(&range, flags_most);
		if (reason)
			return reason;
	}
	return NULL;
}

/* Ranges of so many pages in all, at most. */
static const char *check_pages(const unsigned char *body, uint32_t count, uint64_t most)
{
	const char *reason = check_ranges(body, count, ~0u);
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < count && !reason; i++) {
		struct pm_range range;

		memcpy(&range, body + i * sizeof(range), sizeof(range));
		bytes += range.end - range.start;
		if (bytes > most * PM_PAGE_SIZE)
			reason = "more pages than can be answered";
	}
	return reason;
}

static const char *check_runs(const unsigned char *body, uint32_t count)
{
	struct pm_run run, before = { 0 };
	uint64_t group_pages = 0;

	for (uint32_t i = 0; i < count; i++) {
		memcpy(&run, body + i * sizeof(run), sizeof(run));
		if (run.addr % PM_PAGE_SIZE || run.addr == 0 || run.addr >= ADDRESS_MAX)
			return "a run out of bounds";
		if (run.npages == 0 || run.npages > GROUP_PAGES_MAX || run.segment >= PM_FDS_MAX || run.pgoff >= SLOTS_MAX)
			return "a run of impossible size or place";
		if (run.flags & ~(uint32_t)(PM_RUN_GAP | PM_RUN_JOINED))
			return "a run with unknown flags";
		if (run.flags & PM_RUN_JOINED) {
			uint64_t step = (uint64_t)before.npages;

			if (i == 0 || run.addr != before.addr + step * PM_PAGE_SIZE || run.pgoff != before.pgoff + step ||
			    run.segment != before.segment)
				return "a joined run that does not continue the one before";
			group_pages += run.npages;
		} else {
			if (run.flags & PM_RUN_GAP || before.flags & PM_RUN_GAP)
				return "a gap at the edge of a group";
			group_pages = run.npages;
		}
		if (group_pages > GROUP_PAGES_MAX)
			return "a group of too many pages";
		before = run;
	}
	return before.flags & PM_RUN_GAP ? "a gap at the end of a group" : NULL;
}

static const char *check_hello(const unsigned char *body)
{
	struct pm_hello hello;

	memcpy(&hello, body, sizeof(hello));
	if (!memchr(hello.domain, 0, sizeof(hello.domain)) || !memchr(hello.refusal, 0, sizeof(hello.refusal)))
		return "a text without an end";
	if (hello.fds & ~15u || hello.flags & ~127u || hello.barriers & ~7u)
		return "unknown flags";
	if (hello.own_end && (hello.own_start >= hello.own_end || (hello.own_start | hello.own_end) % PM_PAGE_SIZE))
		return "an impossible range of its own";
	return NULL;
}

static const char *check_failed(const unsigned char *body, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct pm_failed failed;

		memcpy(&failed, body + i * sizeof(failed), sizeof(failed));
		if (failed.addr % PM_PAGE_SIZE || failed.addr >= ADDRESS_MAX || failed.npages > 1u << 28 ||
		    failed.why < PM_FAIL_DIFFERS || failed.why > PM_FAIL_SYSTEM)
			return "an impossible failure";
	}
	return NULL;
}

static const char *check_size(size_t length, uint32_t count, size_t fixed, size_t entry)
{
	return length == sizeof(struct pm_header) + fixed + count * entry ? NULL : "a size that does not fit its count";
}

static const char *check(const unsigned char *datagram, size_t length, bool to_daemon)
{
	struct pm_header header;
	const unsigned char *body = datagram + sizeof(header);
	const char *reason;

	if (length < sizeof(header) || length > PM_MESSAGE_MAX)
		return "a size out of bounds";
	memcpy(&header, datagram, sizeof(header));
	if (header.count > PM_MESSAGE_MAX / sizeof(struct pm_failed))
		return "too many entries";
	if (to_daemon != (header.type < PM_WELCOME))
		return "a message in the wrong direction";
	switch (header.type) {
	case PM_HELLO:
		reason = header.count == 1 ? check_size(length, 1, 0, sizeof(struct pm_hello)) : "more than one hello";
		return reason ? reason : check_hello(body);
	case PM_MARK:
	case PM_ALL:
	case PM_GONE:
		reason = check_size(length, header.count, 0, sizeof(struct pm_range));
		if (reason)
			return reason;
		return header.type == PM_ALL ? NULL : check_ranges(body, header.count, PM_MARK_EXCLUDED);
	case PM_RESULT:
		reason = check_size(length, header.count, sizeof(struct pm_result), sizeof(struct pm_failed));
		return reason ? reason : check_failed(body + sizeof(struct pm_result), header.count);
	case PM_HASHES:
		return check_size(length, header.count, sizeof(struct pm_hashes), sizeof(uint64_t));
	case PM_BYE:
	case PM_PING:
		return check_size(length, 0, 0, 0);
	case PM_WELCOME:
		return header.count == 1 ? check_size(length, 1, 0, sizeof(struct pm_welcome)) : "more than one welcome";
	case PM_MERGE:
	case PM_GIVE:
		reason = check_size(length, header.count, 0, sizeof(struct pm_run));
		return reason ? reason : check_runs(body, header.count);
	case PM_HASH:
		reason = check_size(length, header.count, 0, sizeof(struct pm_range));
		return reason ? reason : check_pages(body, header.count, PM_HASH_PAGES);
	case PM_ADVISE:
		reason = check_size(length, header.count, 0, sizeof(struct pm_range));
		return reason ? reason : check_ranges(body, header.count, PM_MARK_UNMERGEABLE);
	case PM_ADVISE_ALL:
	case PM_STEP_BACK:
		return header.count == 1 ? check_size(length, 1, 0, sizeof(struct pm_range)) : "more than one word on all";
	case PM_UNMERGE:
	case PM_ZERO:
		reason = check_size(length, header.count, 0, sizeof(struct pm_range));
		return reason ? reason : check_ranges(body, header.count, ~0u);
	default:
		return "a message of unknown kind";
	}
}

int pm_message_check(const void *datagram, size_t length, bool to_daemon, const char **reason)
{
	*reason = check(datagram, length, to_daemon);
	return *reason ? -EBADMSG : 0;
}
