/* SPDX-License-Identifier: MIT */
/* The agent's sets of ranges against a plain array that says for each page what it is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ranges.h"

enum { PAGES = 200, ROUNDS = 20000 };

#define CHECK(condition)                                                            \
	do {                                                                        \
		if (!(condition)) {                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1);                                                    \
		}                                                                   \
	} while (0)

static uint32_t model[PAGES];
static struct pm_ranges set;

static bool covered(uint32_t from, uint32_t to, uint32_t kind)
{
	for (uint32_t page = from; page < to; page++)
		if (kind ? model[page] != kind : !model[page])
			return false;
	return true;
}

static bool touched(uint32_t from, uint32_t to, uint32_t kind)
{
	for (uint32_t page = from; page < to; page++)
		if (model[page] == kind)
			return true;
	return false;
}

int main(void)
{
	srand(7);
	for (int round = 0; round < ROUNDS; round++) {
		uint32_t from = (uint32_t)rand() % PAGES, to = from + 1 + (uint32_t)rand() % (PAGES - from), kind = (uint32_t)rand() % 5;
		uint32_t address = (uint32_t)rand() % PAGES;
		uint64_t start = (uint64_t)from << 12, end = (uint64_t)to << 12, first = UINT64_MAX, last = 0;

		if (kind) {
			pm_ranges_put(&set, start, end, kind);
		} else {
			bool some = false;

			for (uint32_t page = from; page < to; page++)
				some = some || model[page];
			CHECK(pm_ranges_cut(&set, start, end) == some);
		}
		for (uint32_t page = from; page < to; page++)
			model[page] = kind;
		if (round % 500 == 499) {
			pm_ranges_keep(&set, 2);
			for (uint32_t page = 0; page < PAGES; page++)
				model[page] = model[page] == 2 ? 2 : 0;
		}
		from = (uint32_t)rand() % PAGES;
		to = from + 1 + (uint32_t)rand() % (PAGES - from);
		start = (uint64_t)from << 12, end = (uint64_t)to << 12;
		kind = (uint32_t)rand() % 5;
		CHECK(pm_ranges_cover(&set, start, end, kind) == covered(from, to, kind));
		CHECK(!kind || pm_ranges_touch(&set, start, end, kind) == touched(from, to, kind));
		CHECK(pm_ranges_kind(&set, (uint64_t)address << 12) == model[address]);
		pm_ranges_next(&set, start, 1, &first, &last);
		while (from < PAGES && model[from] != 1)
			from++;
		CHECK(from == PAGES ? first == UINT64_MAX : first <= (uint64_t)from << 12 && last > (uint64_t)from << 12);
	}
	return 0;
}
