/* SPDX-License-Identifier: MIT */
/* Processes coming and going; what belongs to none of the scanner's other parts. */
#include "scanner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const size_t BUFFER_BYTES = (size_t)PM_READ_PAGES * PM_PAGE_SIZE;

/* What one of the machine's small files says, or `otherwise`. */
static uint64_t read_number(const char *path, uint64_t otherwise)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char text[32];
	ssize_t n;

	if (fd < 0)
		return otherwise;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return otherwise;
	text[n] = '\0';
	return strtoull(text, NULL, 10);
}

/* NUMA nodes: one more than the highest in "0-3". */
static int count_nodes(void)
{
	int fd = open("/sys/devices/system/node/possible", O_RDONLY | O_CLOEXEC);
	char text[64], *last;
	ssize_t n;

	if (fd < 0)
		return 1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 1;
	text[n] = '\0';
	last = text + n;
	while (last > text && strchr("0123456789\n", last[-1]))
		last--;
	n = strtol(last, NULL, 10) + 1;
	return n > 0 && n <= PM_NODES_MAX ? (int)n : PM_NODES_MAX;
}

int pm_scanner_init(struct pm_scanner *scanner)
{
	int err;

	memset(scanner, 0, sizeof(*scanner));
	scanner->knobs = (struct pm_knobs){
		.max_page_sharing = 256,
		.smart_scan = 1,
		.merge_across_nodes = 1,
		.prune_millisecs = 2000,
		.gap_pages = 8,
		.vma_reserve = 1000,
	};
	pm_reader_init(&scanner->reader);
	pm_pool_init(&scanner->pool);
	memset(scanner->spill, 0xff, sizeof(scanner->spill)); /* PM_NO_SLOT */
	scanner->max_map_count = read_number("/proc/sys/vm/max_map_count", 65530);
	scanner->nodes = count_nodes();
	err = pm_index_init(&scanner->index, &scanner->chunks, &scanner->pool);
	if (err)
		return err;
	scanner->datagram = malloc(PM_MESSAGE_MAX);
	for (size_t i = 0; i < 2; i++) {
		scanner->batches[i].buffer = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (scanner->batches[i].buffer == MAP_FAILED)
			scanner->batches[i].buffer = NULL;
	}
	if (!scanner->datagram || !scanner->batches[0].buffer || !scanner->batches[1].buffer) {
		pm_scanner_deinit(scanner);
		return -ENOMEM;
	}
	return 0;
}

void pm_scanner_deinit(struct pm_scanner *scanner)
{
	while (scanner->mms)
		pm_mm_remove(scanner, scanner->mms);
	pm_reader_deinit(&scanner->reader);
	pm_index_deinit(&scanner->index);
	pm_chunks_deinit(&scanner->chunks);
	pm_pool_deinit(&scanner->pool);
	pm_maps_deinit(&scanner->maps);
	free(scanner->datagram);
	free(scanner->events);
	free(scanner->lone);
	for (size_t i = 0; i < 2; i++)
		if (scanner->batches[i].buffer)
			munmap(scanner->batches[i].buffer, BUFFER_BYTES);
	memset(scanner, 0, sizeof(*scanner));
}

struct pm_mm *pm_mm_find(const struct pm_scanner *scanner, uint64_t number)
{
	struct pm_mm *mm = scanner->mms;

	while (mm && mm->mm != number)
		mm = mm->next;
	return mm;
}

/* A copy of a descriptor, or our own of /proc/PID/NAME where none was given; -1 where neither is to be had. */
static int take_fd(int fd, pid_t pid, const char *name)
{
	char path[64];

	if (fd >= 0)
		return fcntl(fd, F_DUPFD_CLOEXEC, 3);
	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

int pm_mm_add(struct pm_scanner *scanner, uint64_t number, pid_t pid, const struct pm_mm_fds *fds, uint64_t parent)
{
	struct pm_mm *mm, *from = parent ? pm_mm_find(scanner, parent) : NULL;

	if (pm_mm_find(scanner, number))
		return -EEXIST;
	mm = calloc(1, sizeof(*mm));
	if (!mm)
		return -ENOMEM;
	mm->mm = number;
	mm->family = from ? from->family : number;
	mm->pid = pid;
	mm->maps_fd = take_fd(fds->maps, pid, "maps");
	mm->pagemap_fd = take_fd(fds->pagemap, pid, "pagemap");
	mm->mem_fd = take_fd(fds->mem, pid, "mem");
	mm->statm_fd = take_fd(-1, pid, "statm");
	mm->uffd = fds->uffd < 0 ? -1 : fcntl(fds->uffd, F_DUPFD_CLOEXEC, 3);
	mm->giving = mm->spill = PM_NO_SLOT;
	mm->stale = true;
	pm_track_init(&mm->track, mm->pagemap_fd);
	mm->next = scanner->mms;
	scanner->mms = mm;
	return 0;
}

void pm_mm_remove(struct pm_scanner *scanner, struct pm_mm *mm)
{
	struct pm_mm **at = &scanner->mms;
	const int fds[] = {mm->maps_fd, mm->pagemap_fd, mm->mem_fd, mm->statm_fd, mm->uffd};

	pm_mm_lost(scanner, mm);
	for (size_t c = 0; c < mm->nchunks; c++) {
		for (uint32_t i = 0; i < mm->chunks[c]->n; i++)
			pm_page_detach(scanner, mm->chunks[c], i, PM_NONE);
		pm_chunk_destroy(&scanner->chunks, mm->chunks[c]);
	}
	if (mm->in_pass)
		scanner->in_pass--;
	while (*at != mm)
		at = &(*at)->next;
	*at = mm->next;
	if (!scanner->mms) { /* others may hold something else */
		scanner->whole = false;
		memset(&scanner->proofs, 0, sizeof(scanner->proofs));
	}
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(mm->chunks);
	free(mm->marks);
	free(mm->regions);
	free(mm->parts);
	free(mm);
}

void pm_begin_pass(struct pm_scanner *scanner)
{
	scanner->pass++;
	scanner->recalled = false;
	/* The limit can be raised while we run. */
	scanner->max_map_count = read_number("/proc/sys/vm/max_map_count", 65530);
}

/* Nodes are to be kept apart, or no longer: the sums of what is unshared are of the other kind. */
static void forget_unshared(struct pm_scanner *scanner)
{
	for (struct pm_mm *mm = scanner->mms; mm; mm = mm->next)
		for (size_t c = 0; c < mm->nchunks; c++)
			for (uint32_t i = 0; i < mm->chunks[c]->n; i++)
				if (pm_page_state(mm->chunks[c], i) == PM_UNSHARED)
					pm_page_detach(scanner, mm->chunks[c], i, PM_LOOKED);
}

int pm_set_knob(struct pm_scanner *scanner, const char *name, uint64_t value)
{
	struct pm_knobs *knobs = &scanner->knobs;
	const struct {
		const char *name;
		uint32_t *knob;
	} table[] = {
		{"use_zero_pages", &knobs->use_zero_pages},
		{"max_page_sharing", &knobs->max_page_sharing},
		{"smart_scan", &knobs->smart_scan},
		{"merge_across_nodes", &knobs->merge_across_nodes},
		{"stable_node_chains_prune_millisecs", &knobs->prune_millisecs},
		{"gap_pages", &knobs->gap_pages},
		{"vma_reserve", &knobs->vma_reserve},
	};

	if (value > UINT32_MAX)
		return -ERANGE;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (strcmp(name, table[i].name) != 0)
			continue;
		if (table[i].knob == &knobs->max_page_sharing && value < 2)
			return -EINVAL;
		if (table[i].knob == &knobs->merge_across_nodes && !value != !knobs->merge_across_nodes &&
		    scanner->nodes > 1)
			forget_unshared(scanner);
		*table[i].knob = (uint32_t)value;
		return 0;
	}
	return -ENOENT;
}

int pm_trace(struct pm_scanner *scanner, bool on)
{
	if (on && !scanner->events) {
		scanner->events = malloc(PM_EVENTS * sizeof(*scanner->events));
		if (!scanner->events)
			return -ENOMEM;
	}
	scanner->tracing = on;
	return 0;
}

void pm_event(struct pm_scanner *scanner, enum pm_event_kind kind, uint64_t mm, uint64_t address, uint32_t slot,
	      int err)
{
	if (!scanner->tracing)
		return;
	if (scanner->event_head - scanner->event_tail == PM_EVENTS) {
		scanner->events_lost++;
		return;
	}
	scanner->events[scanner->event_head++ % PM_EVENTS] = (struct pm_event){
		.time_ns = pm_now_ns(),
		.mm = mm,
		.address = address,
		.slot = slot,
		.err = (int16_t)err,
		.kind = (uint16_t)kind,
	};
}
