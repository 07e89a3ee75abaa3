/* SPDX-License-Identifier: MIT */
/* Hashes, zero tests, /proc/PID/maps. */
#include "check.h"
#include "hash_table.h"
#include "maps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static void test_all_variants_agree(void)
{
	static char pages[16 * PM_PAGE_SIZE];
	const struct pm_hash_table *tables[] = {
		&pm_hash_base,
#ifdef __x86_64__
		__builtin_cpu_supports("avx2") ? &pm_hash_avx2 : &pm_hash_base,
		__builtin_cpu_supports("avx512bw") ? &pm_hash_avx512 : &pm_hash_base,
#endif
	};
	uint64_t hashes[16];
	uint64_t keys[16], whole[16];

	for (size_t i = 0; i < sizeof(pages); i++)
		pages[i] = (char)(i * 31 + i / PM_PAGE_SIZE * 7);
	pm_page_hashes(pages, 16, hashes);
	pm_page_keys(pages, 16, false, keys);
	pm_page_keys(pages, 16, true, whole);
	for (size_t i = 0; i < 16; i++) {
		CHECK((uint32_t)keys[i] == (uint32_t)whole[i] && !(keys[i] >> 32) && whole[i] >> 32);
		for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		{
			CHECK(tables[t]->hash(pages + i * PM_PAGE_SIZE) == hashes[i]);
			CHECK(tables[t]->key(pages + i * PM_PAGE_SIZE, true) == whole[i]);
		}
	}
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
		memset(pages, 0, PM_PAGE_SIZE);
		CHECK(tables[t]->is_zero(pages));
		for (size_t at = 0; at < PM_PAGE_SIZE; at += 61) {
			pages[at] = 1;
			CHECK(!tables[t]->is_zero(pages));
			pages[at] = 0;
		}
		pages[PM_PAGE_SIZE - 1] = 1;
		CHECK(!tables[t]->is_zero(pages));
	}
}

static void test_a_line_of_maps(void)
{
	static const char text[] = "7f00-8f00 rw-p 00001000 00:01 1046                       /memfd:pagemerge (deleted)\n"
				   "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
				   "10000-20000 rw-p 00000000 00:00 0 \n";
	struct pm_maps maps = {0};

	CHECK_EQUAL(pm_maps_parse(text, sizeof(text) - 1, &maps), 0);
	CHECK_EQUAL(maps.count, 3);
	CHECK(maps.maps[0].start == 0x7f00 && maps.maps[0].end == 0x8f00 && maps.maps[0].offset == 0x1000);
	CHECK(maps.maps[0].inode == 1046 && maps.maps[0].minor == 1);
	CHECK(maps.maps[0].path_length == strlen("/memfd:pagemerge (deleted)"));
	CHECK(maps.maps[1].end == 0xffffffffff601000);
	CHECK_EQUAL(maps.maps[2].path_length, 0);
	pm_maps_deinit(&maps);
}

static void test_what_is_no_line_of_maps(void)
{
	static const char *const lines[] = {
		"", "x", "1000", "1000-", "1000-2000", "1000-2000 rw-p", "1000-2000 rw-p 0 0:0", "2000-1000 rw-p 0 0:0 0 ",
		"1000-2000 rw-p 0 0:0 z ", "10000000000000000-2000 rw-p 0 0:0 0 ", "1000-2000 rw- 0 0:0 0 ",
	};
	struct pm_map map;

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
		CHECK_EQUAL(pm_map_parse(lines[i], strlen(lines[i]), &map), -EINVAL);
}

static void test_our_own_maps(void)
{
	struct pm_maps maps = {0};
	int fd = open("/proc/self/maps", O_RDONLY), here = 0;

	CHECK_EQUAL(pm_maps_read(fd, &maps), 0);
	for (size_t i = 0; i < maps.count; i++)
		here += maps.maps[i].start <= (uintptr_t)&here && maps.maps[i].end > (uintptr_t)&here;
	CHECK_EQUAL(here, 1);
	pm_maps_deinit(&maps);
	close(fd);
}

int main(void)
{
	test_all_variants_agree();
	test_a_line_of_maps();
	test_what_is_no_line_of_maps();
	test_our_own_maps();
	return 0;
}
