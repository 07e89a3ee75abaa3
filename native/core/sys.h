/* SPDX-License-Identifier: MIT */
/*
 * What the kernel offers and older headers lack, with thin wrappers: 0 or a value, or -errno.
 */
#ifndef PM_SYS_H
#define PM_SYS_H

#include <errno.h>
#include <linux/types.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PM_PAGE_SIZE 4096u
#define PM_PAGE_SHIFT 12
#define PM_POOL_NAME "pagemerge" /* the memfd's name; /proc/PID/maps shows "/memfd:pagemerge (deleted)" */
#define PM_POOL_PATH "/memfd:pagemerge"

/* PAGEMAP_SCAN, Linux 6.7 (include/uapi/linux/fs.h) */
struct pm_page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

struct pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};

#define PM_IOC_PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)

enum pm_scan_flag {
	PM_SCAN_WP_MATCHING_ = 1 << 0,
	PM_SCAN_CHECK_WPASYNC_ = 1 << 1,
};

enum pm_category {
	PM_IS_WPALLOWED = 1 << 0,
	PM_IS_WRITTEN = 1 << 1,
	PM_IS_FILE = 1 << 2,
	PM_IS_PRESENT = 1 << 3,
	PM_IS_SWAPPED = 1 << 4,
	PM_IS_PFNZERO = 1 << 5,
	PM_IS_HUGE = 1 << 6,
	PM_IS_SOFT_DIRTY = 1 << 7,
};

/* PROCMAP_QUERY, Linux 6.11 */
struct pm_procmap_query {
	__u64 size;
	__u64 query_flags;
	__u64 query_addr;
	__u64 vma_start;
	__u64 vma_end;
	__u64 vma_flags;
	__u64 vma_page_size;
	__u64 vma_offset;
	__u64 inode;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 vma_name_size;
	__u32 build_id_size;
	__u64 vma_name_addr;
	__u64 build_id_addr;
};

#define PM_IOC_PROCMAP_QUERY _IOWR('f', 17, struct pm_procmap_query)

enum pm_procmap_flag {
	PM_VMA_READABLE = 0x01,
	PM_VMA_WRITABLE = 0x02,
	PM_VMA_EXECUTABLE = 0x04,
	PM_VMA_SHARED = 0x08,
	PM_QUERY_COVERING_OR_NEXT = 0x10,
	PM_QUERY_FILE_BACKED = 0x20,
};

/* userfaultfd features that the 6.1 headers don't know */
#define PM_UFFD_FEATURE_WP_UNPOPULATED (1ULL << 13)
#define PM_UFFD_FEATURE_WP_ASYNC (1ULL << 15)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Number of ranges found, or -errno; *walk_end says where the walk stopped. */
static inline long pm_pagemap_scan(int pagemap_fd, struct pm_scan_arg *arg)
{
	arg->size = sizeof(*arg);
	long n = ioctl(pagemap_fd, PM_IOC_PAGEMAP_SCAN, arg);

	return n < 0 ? -errno : n;
}

static inline int pm_userfaultfd(int flags)
{
	long fd = syscall(SYS_userfaultfd, flags);

	return fd < 0 ? -errno : (int)fd;
}

static inline uint64_t pm_page_down(uint64_t address)
{
	return address & ~(uint64_t)(PM_PAGE_SIZE - 1);
}

static inline uint64_t pm_page_up(uint64_t address)
{
	return pm_page_down(address + PM_PAGE_SIZE - 1);
}

#endif
