// SPDX-License-Identifier: MIT
/* Census: what is to be read, and the memory that it takes. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "census_impl.h"
#include "page.h"

void *pm_census_reserve(size_t bytes)
{
	void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int pm_census_make_room(void **array, size_t *room, size_t used, size_t size)
{
	size_t more = *room ? *room * 2 : 64;
	void *p;

	if (used < *room)
		return 0;
	p = realloc(*array, more * size);
	if (!p)
		return -ENOMEM;
	*array = p;
	*room = more;
	return 0;
}

int pm_census_create(uint32_t sample, uint64_t salt, unsigned int threads, struct pm_census **out)
{
	static const uint8_t zero[PM_PAGE_SIZE];
	struct pm_census *c;
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	char text[32] = "";
	int fd;

	if (!sample || sysconf(_SC_PAGESIZE) != PM_PAGE_SIZE)
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->sample = sample;
	c->threshold = (uint32_t)((1ull << 32) / sample - 1);
	c->salt = salt;
	c->threads = threads ? threads : cores > 0 ? (unsigned int)cores : 1;
	if (c->threads > PM_THREADS_MAX)
		c->threads = PM_THREADS_MAX;
	c->scan_works = true;
	c->zero_hash = pm_page_hash(zero);
	c->frames_bytes = PM_FRAMES_MAX / 8;
	c->frames = pm_census_reserve(c->frames_bytes);
	if (c->frames)
		(void)madvise((void *)c->frames, c->frames_bytes, MADV_NOHUGEPAGE);
	c->frames_known = c->frames != NULL;
	c->kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC); /* needs root; without it, -1 */
	fd = open("/sys/kernel/mm/ksm/pages_shared", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		c->ksm_active = read(fd, text, sizeof(text) - 1) > 0 && strtoul(text, NULL, 10) > 0;
		close(fd);
	}
	pthread_mutex_init(&c->lock, NULL);
	*out = c;
	return 0;
}

void pm_census_destroy(struct pm_census *c)
{
	if (!c)
		return;
	if (c->frames)
		munmap((void *)c->frames, c->frames_bytes);
	if (c->hash)
		munmap(c->hash, c->room * sizeof(*c->hash));
	if (c->pos)
		munmap(c->pos, c->room * sizeof(*c->pos));
	pm_heavy_deinit(c);
	if (c->kpageflags_fd >= 0)
		close(c->kpageflags_fd);
	pthread_mutex_destroy(&c->lock);
	free(c->spaces);
	free(c->regions);
	free(c->windows);
	free(c->segments);
	free(c);
}

static int add_space(struct pm_census *c, int pid, int fd, int mem_fd)
{
	int error = pm_census_make_room((void **)&c->spaces, &c->spaces_room, c->nspaces, sizeof(*c->spaces));

	if (error)
		return error;
	memset(&c->spaces[c->nspaces], 0, sizeof(*c->spaces));
	c->spaces[c->nspaces].pid = pid;
	c->spaces[c->nspaces].fd = fd;
	c->spaces[c->nspaces].mem_fd = mem_fd;
	return (int)c->nspaces++;
}

int pm_census_add_process(struct pm_census *c, int pid, int pagemap_fd, int mem_fd)
{
	return pid > 0 ? add_space(c, pid, pagemap_fd, mem_fd) : -EINVAL;
}

int pm_census_add_file(struct pm_census *c, int fd)
{
	return add_space(c, 0, fd, -1);
}

int64_t pm_census_add_region(struct pm_census *c, int space, uint64_t start, uint64_t end, uint64_t offset)
{
	struct pm_region *r;
	int error;

	if (c->hash || space < 0 || (size_t)space >= c->nspaces || start >= end || (start | end) % PM_PAGE_SIZE)
		return -EINVAL;
	if (c->nregions && c->regions[c->nregions - 1].space > (uint32_t)space)
		return -EINVAL;
	if (c->nregions >= UINT32_MAX)
		return -E2BIG;
	error = pm_census_make_room((void **)&c->regions, &c->regions_room, c->nregions, sizeof(*c->regions));
	if (error)
		return error;
	r = &c->regions[c->nregions];
	memset(r, 0, sizeof(*r));
	r->start = start >> PM_PAGE_SHIFT;
	r->end = end >> PM_PAGE_SHIFT;
	r->offset = offset;
	r->space = (uint32_t)space;
	return (int64_t)c->nregions++;
}

void pm_census_progress(const struct pm_census *c, uint64_t *done, uint64_t *total)
{
	*done = atomic_load(&c->done);
	*total = atomic_load(&c->total);
}

void pm_census_cancel(struct pm_census *c)
{
	atomic_store(&c->cancelled, true);
}

size_t pm_census_spaces(const struct pm_census *c)
{
	return c->nspaces;
}

void pm_census_space(const struct pm_census *c, size_t space, struct pm_census_space_info *out)
{
	out->state = (uint32_t)atomic_load(&c->spaces[space].state);
	out->error = atomic_load(&c->spaces[space].error);
}
