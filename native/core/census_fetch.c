// SPDX-License-Identifier: MIT
/* Census: fetching pages of a process or a file, without changing what is read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "census_impl.h"

/* The next pages that follow each other, from `done` on, of a file or through /proc/PID/mem; bytes read, or -errno. */
static ssize_t read_by_file(const struct pm_space *s, uint64_t file_base, uint8_t *to, const uint64_t *page, unsigned int done,
			    unsigned int end)
{
	unsigned int i = done + 1;
	ssize_t r;

	while (i < end && page[i] == page[i - 1] + 1)
		i++;
	r = pread(s->pid ? s->mem_fd : s->fd, to, (size_t)(i - done) * PM_PAGE_SIZE,
		  (off_t)((s->pid ? 0 : file_base) + (page[done] << PM_PAGE_SHIFT)));
	return r < 0 ? -errno : r;
}

/* The next pages that can be had by one call, from `done` on; bytes read, or -errno. */
static ssize_t read_run(const struct pm_space *s, uint64_t file_base, uint8_t *buffer, const uint64_t *page, const bool *common,
			unsigned int done, unsigned int n)
{
	uint8_t *to = buffer + (size_t)done * PM_PAGE_SIZE;
	struct iovec remote[PM_CHUNK], local;
	unsigned int i = n, count = 0;
	ssize_t r;

	if (s->pid && common[done])
		for (i = done + 1; i < n && common[i]; i++)
			;
	if (!s->pid || (common[done] && s->mem_fd >= 0))
		return read_by_file(s, file_base, to, page, done, i);
	for (i = done; i < n && (!common[i] || s->mem_fd < 0); i++) {
		if (count && page[i] == page[i - 1] + 1) {
			remote[count - 1].iov_len += PM_PAGE_SIZE;
			continue;
		}
		remote[count].iov_base = (void *)(uintptr_t)(page[i] << PM_PAGE_SHIFT);
		remote[count++].iov_len = PM_PAGE_SIZE;
	}
	local.iov_base = to;
	local.iov_len = (size_t)(i - done) * PM_PAGE_SIZE;
	r = process_vm_readv(s->pid, &local, 1, remote, count, 0);
	if (r >= (ssize_t)PM_PAGE_SIZE)
		return r;
	/* Mapped without PROT_READ, which ksmd does not care about and /proc/PID/mem overrides; or unmapped by now. */
	if ((r >= 0 || errno == EFAULT) && s->mem_fd >= 0)
		return read_by_file(s, file_base, to, page, done, done + (remote[0].iov_len >> PM_PAGE_SHIFT));
	return r < 0 ? -errno : r;
}

/*
 * Read pages into the buffer, page[i] to slot i; got[i]: whether it is there.  -errno when the space can't be read.
 *
 * process_vm_readv() pins what it reads, and pinning gives a process a copy of its own of each anonymous page that it
 * shares by fork or by KSM (mm/gup.c: gup_must_unshare()): a look would cost the target memory.  So pages that are
 * mapped more than once (`common`) are read through /proc/PID/mem, which takes twice as long and changes nothing.
 */
int pm_census_fetch(const struct pm_space *s, uint64_t file_base, uint8_t *buffer, const uint64_t *page, const bool *common,
		      unsigned int n, bool *got)
{
	unsigned int done = 0;

	memset(got, 0, n);
	while (done < n) {
		ssize_t r = read_run(s, file_base, buffer, page, common, done, n);

		if (r == -EINTR)
			continue;
		if (r < 0 && r != -EFAULT && r != -EIO)
			return (int)r;
		if (r < (ssize_t)PM_PAGE_SIZE) {
			done++; /* this one could not be read */
			continue;
		}
		memset(got + done, 1, (size_t)r / PM_PAGE_SIZE);
		done += (unsigned int)(r / PM_PAGE_SIZE);
	}
	return 0;
}

static int reader_init(struct pm_reader *rd, struct pm_census *c)
{
	size_t records = (size_t)PM_WINDOW_PAGES * (c->sample < PM_WINDOW_SCALE_MAX ? c->sample : PM_WINDOW_SCALE_MAX);

	memset(rd, 0, sizeof(*rd));
	rd->c = c;
	rd->hash = pm_census_reserve(records * sizeof(*rd->hash));
	rd->pos = pm_census_reserve(records * sizeof(*rd->pos));
	rd->buffer = aligned_alloc(PM_PAGE_SIZE, (size_t)PM_CHUNK * PM_PAGE_SIZE);
	return rd->hash && rd->pos && rd->buffer ? 0 : -ENOMEM;
}

static void reader_deinit(struct pm_reader *rd)
{
	size_t records = (size_t)PM_WINDOW_PAGES * (rd->c->sample < PM_WINDOW_SCALE_MAX ? rd->c->sample : PM_WINDOW_SCALE_MAX);

	if (rd->hash)
		munmap(rd->hash, records * sizeof(*rd->hash));
	if (rd->pos)
		munmap(rd->pos, records * sizeof(*rd->pos));
	free(rd->buffer);
}

struct pm_reader *pm_reader_create(struct pm_census *c)
{
	struct pm_reader *rd = malloc(sizeof(*rd));

	if (rd && reader_init(rd, c)) {
		reader_deinit(rd);
		free(rd);
		rd = NULL;
	}
	if (!rd)
		atomic_store(&c->error, -ENOMEM);
	return rd;
}

void pm_reader_destroy(struct pm_reader *rd)
{
	reader_deinit(rd);
	free(rd);
}
