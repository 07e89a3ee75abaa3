/* SPDX-License-Identifier: MIT */
/*
 * The userfaultfd barrier: pages are write-protected, and whoever writes to one, in user mode or in a system call, sleeps until we are done.
 *
 * The userfaultfd is the agent's alone, so that the end of this process, too, wakes the sleepers; it is kept, for closing one goes through all mappings of the process.  A
 * user-mode-only one would not do: a system call that writes to a protected page would fail with EFAULT.
 */
#include "agent.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* Open to faults of the kernel's, too; with `features` if the kernel has them. */
static int open_with(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = pm_userfaultfd(O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) { /* not privileged, but perhaps given access to the device */
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (device < 0)
			return fd;
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
		if (fd < 0)
			return -EPERM;
	}
	if (ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -EINVAL;
	}
	return fd;
}

/*
 * Pages that have not been touched yet must be protected as well: Linux 6.4 does that itself; before, they are all given a page first.
 */
static bool populate;

static int uffd_open(void)
{
	int fd = open_with(UFFD_FEATURE_PAGEFAULT_FLAG_WP | PM_UFFD_FEATURE_WP_UNPOPULATED);

	populate = fd == -EINVAL;
	return populate ? open_with(UFFD_FEATURE_PAGEFAULT_FLAG_WP) : fd;
}

bool pm_uffd_possible(void)
{
	int fd = uffd_open();

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static int barrier = -1;

int pm_uffd_open(void)
{
	if (barrier < 0)
		barrier = uffd_open();
	return barrier;
}

int pm_uffd_protect(int fd, uint64_t start, uint64_t end, int tracker)
{
	struct uffdio_range range = { start, end - start };
	struct uffdio_register request = { .range = range, .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect protect = { .range = range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int error = 0;

	if (ioctl(fd, UFFDIO_REGISTER, &request)) {
		error = -errno;
		/* The daemon's write tracking holds it: that gives way, and is set up again at its next look. */
		if (error == -EBUSY && tracker >= 0 && ioctl(tracker, UFFDIO_UNREGISTER, &range) == 0)
			error = ioctl(fd, UFFDIO_REGISTER, &request) ? -errno : 0;
	}
	if (!error && populate && pm_madvise((void *)(uintptr_t)start, end - start, MADV_POPULATE_READ))
		error = -errno;
	if (!error && ioctl(fd, UFFDIO_WRITEPROTECT, &protect))
		error = -errno;
	if (!error)
		pm_writers_pass();
	if (error)
		pm_uffd_release(fd, start, end);
	return error;
}

/* Not by closing it: that would walk through all mappings of the process, of which there may be tens of thousands. */
void pm_uffd_release(int fd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = { start, end - start };

	(void)!ioctl(fd, UFFDIO_UNREGISTER, &range);
	(void)!ioctl(fd, UFFDIO_WAKE, &range); /* also those who waited for pages that are mapped anew */
}

/*
 * Filling holes of a private mapping of a segment.  An ordinary write to one makes the kernel give the segment a page, too, which then is nobody's: memory lost for
 * each page that is kept private between merged ones.  UFFDIO_COPY does not.  This userfaultfd catches nobody's faults; it needs no privilege.
 */
static int filler = -1;
static struct uffdio_range filling; /* len 0: nothing */

static int open_filler(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = pm_table_is_own() ? pm_userfaultfd(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY) : -EPERM;

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -EINVAL;
	}
	return fd;
}

/* From now on [start, end) is filled so, where that can be had.  Kept open: closing one goes through all mappings of the process. */
void pm_uffd_fill_begin(uint64_t start, uint64_t end)
{
	struct uffdio_register request = { .range = { start, end - start }, .mode = UFFDIO_REGISTER_MODE_MISSING };

	if (filler == -1)
		filler = open_filler();
	if (filler >= 0 && ioctl(filler, UFFDIO_REGISTER, &request) == 0)
		filling = request.range;
}

void pm_uffd_fill_end(void)
{
	if (filling.len)
		(void)!ioctl(filler, UFFDIO_UNREGISTER, &filling);
	filling.len = 0;
}

void pm_uffd_fill(void *to, const void *from, size_t length)
{
	struct uffdio_copy copy = { .dst = (uintptr_t)to, .src = (uintptr_t)from, .len = length, .mode = UFFDIO_COPY_MODE_DONTWAKE };

	if (filling.len && ioctl(filler, UFFDIO_COPY, &copy) == 0)
		return;
	pm_uffd_fill_end(); /* or our own write would wait for us to handle its fault */
	memcpy(to, from, length);
}

/* A child of fork(2) has none. */
void pm_uffd_forked(void)
{
	barrier = filler = -1;
	filling.len = 0;
}
