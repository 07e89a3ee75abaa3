/* SPDX-License-Identifier: MIT */
#include "read.h"

#include "page.h"
#include "scanner.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The candidate after those that lie next to each other from `from` on. */
static size_t adjacent(const struct pm_batch *batch, size_t from)
{
	const struct pm_candidate *c = batch->candidates;
	size_t to = from + 1;

	while (to < batch->n && c[to].exclusive == c[from].exclusive && c[to].address == c[to - 1].address + PM_PAGE_SIZE)
		to++;
	return to;
}

/* Read candidates [from, to), which are adjacent, into their places in the buffer.  Bytes read, or -errno. */
static ssize_t read_adjacent(struct pm_batch *batch, size_t from, size_t to)
{
	ssize_t n = pread(batch->mm->mem_fd, batch->buffer + from * PM_PAGE_SIZE, (to - from) * PM_PAGE_SIZE,
			  (off_t)batch->candidates[from].address);

	return n < 0 ? -errno : n;
}

/* Read candidates from `from` on.  Bytes read (whole pages and perhaps a part of one), or -errno. */
static ssize_t read_some(struct pm_batch *batch, size_t from)
{
	struct iovec local = {batch->buffer + from * PM_PAGE_SIZE, (batch->n - from) * PM_PAGE_SIZE};
	struct iovec remote[PM_READ_PAGES];
	struct pm_mm *mm = batch->mm;
	unsigned long n = 0;
	ssize_t got;

	if (mm->mem_fd >= 0 && (mm->by_mem || !batch->candidates[from].exclusive))
		return read_adjacent(batch, from, adjacent(batch, from));
	for (size_t at = from; at < batch->n && batch->candidates[at].exclusive;) {
		size_t to = adjacent(batch, at);

		remote[n++] = (struct iovec){(void *)(uintptr_t)batch->candidates[at].address, (to - at) * PM_PAGE_SIZE};
		at = to;
	}
	got = process_vm_readv(mm->pid, &local, 1, remote, n, 0);
	if (got >= 0)
		return got;
	if ((errno == EPERM || errno == ENOSYS) && mm->mem_fd >= 0) {
		mm->by_mem = true;
		return read_some(batch, from);
	}
	return -errno;
}

/*
 * Which candidates are mapped by this process alone.  process_vm_readv pins what it reads, and to pin a page that is
 * shared after a fork the kernel copies it: reading would cost the memory that is to be saved.  /proc/PID/mem does not.
 */
static void find_exclusive(struct pm_batch *batch)
{
	struct pm_candidate *c = batch->candidates;

	for (size_t i = 0; i < batch->n; i++)
		c[i].exclusive = true;
	for (size_t at = 0, to; batch->mm->mem_fd >= 0 && at < batch->n; at = to) {
		bool exclusive[PM_READ_PAGES];

		to = adjacent(batch, at);
		pm_track_exclusive(&batch->mm->track, c[at].address, to - at, exclusive);
		for (size_t i = at; i < to; i++)
			c[i].exclusive = exclusive[i - at];
	}
}

static void read_all(struct pm_batch *batch)
{
	find_exclusive(batch);
	for (size_t at = 0; at < batch->n;) {
		ssize_t got = read_some(batch, at);

		if (got == -EINTR)
			continue;
		if (got == -ESRCH) {
			while (at < batch->n)
				batch->candidates[at++].chunk = NULL;
			break;
		}
		if (got > 0) {
			size_t before = at;

			at += (size_t)got / PM_PAGE_SIZE;
			batch->bytes_read += (uint64_t)got;
			if (at > before) /* what is left is tried by itself: it may be of the other kind */
				continue;
		}
		if (at < batch->n) { /* the page that stopped it: unmapped meanwhile, or not readable */
			batch->candidates[at++].chunk = NULL;
			batch->read_errors++;
		}
	}
}

/* The node of every candidate's page when nodes are to be kept apart; 0 otherwise. */
static void find_nodes(struct pm_batch *batch)
{
	void *pages[PM_READ_PAGES];

	for (size_t i = 0; i < batch->n; i++) {
		batch->nodes[i] = 0;
		pages[i] = batch->candidates[i].chunk ? (void *)(uintptr_t)batch->candidates[i].address : NULL;
	}
	if (!batch->nodes_max || syscall(SYS_move_pages, batch->mm->pid, batch->n, pages, NULL, batch->nodes, 0) < 0)
		return;
	for (size_t i = 0; i < batch->n; i++)
		if (batch->nodes[i] < 0 || batch->nodes[i] >= batch->nodes_max)
			batch->nodes[i] = 0;
}

static void read_batch(struct pm_batch *batch)
{
	batch->bytes_read = 0;
	batch->hashed = batch->read_errors = 0;
	read_all(batch);
	find_nodes(batch);
	for (size_t i = 0; i < batch->n; i++)
		if (batch->candidates[i].chunk) {
			batch->keys[i] = pm_page_key(batch->buffer + i * PM_PAGE_SIZE, true);
			batch->hashed++;
		}
}

static void *run(void *context)
{
	struct pm_reader *reader = context;

	pthread_mutex_lock(&reader->lock);
	while (!reader->end) {
		struct pm_batch *batch = reader->work;

		if (!batch) {
			pthread_cond_wait(&reader->changed, &reader->lock);
			continue;
		}
		pthread_mutex_unlock(&reader->lock);
		read_batch(batch);
		pthread_mutex_lock(&reader->lock);
		reader->work = NULL;
		pthread_cond_broadcast(&reader->changed);
	}
	pthread_mutex_unlock(&reader->lock);
	return NULL;
}

/* The thread is made when there is something to read for it; the program's signals are not for it. */
static bool start(struct pm_reader *reader)
{
	sigset_t all, before;
	cpu_set_t cpus;

	if (reader->started || reader->alone)
		return reader->started;
	reader->alone = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) < 2;
	if (reader->alone)
		return false;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	reader->started = pthread_create(&reader->thread, NULL, run, reader) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	reader->alone = !reader->started;
	return reader->started;
}

void pm_reader_init(struct pm_reader *reader)
{
	*reader = (struct pm_reader){.end = false};
	pthread_mutex_init(&reader->lock, NULL);
	pthread_cond_init(&reader->changed, NULL);
}

void pm_reader_deinit(struct pm_reader *reader)
{
	if (reader->started) {
		pthread_mutex_lock(&reader->lock);
		reader->end = true;
		pthread_cond_broadcast(&reader->changed);
		pthread_mutex_unlock(&reader->lock);
		pthread_join(reader->thread, NULL);
	}
	pthread_cond_destroy(&reader->changed);
	pthread_mutex_destroy(&reader->lock);
}

void pm_reader_begin(struct pm_reader *reader, struct pm_batch *batch, bool beside)
{
	if (!beside || !start(reader)) {
		read_batch(batch);
		return;
	}
	pthread_mutex_lock(&reader->lock);
	while (reader->work)
		pthread_cond_wait(&reader->changed, &reader->lock);
	reader->work = batch;
	pthread_cond_broadcast(&reader->changed);
	pthread_mutex_unlock(&reader->lock);
}

void pm_reader_wait(struct pm_reader *reader, const struct pm_batch *batch)
{
	pthread_mutex_lock(&reader->lock);
	while (reader->work == batch)
		pthread_cond_wait(&reader->changed, &reader->lock);
	pthread_mutex_unlock(&reader->lock);
}
