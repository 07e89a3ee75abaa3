/* SPDX-License-Identifier: MIT */
/*
 * This process's mappings: by PROCMAP_QUERY (Linux 6.11), else from the text of /proc/PID/maps.  Its first thread may have ended, and has no memory then:
 * therefore /proc/thread-self.
 */
#include "agent.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static void judge(struct pm_vma *vma, const char *name)
{
	vma->pool = strncmp(name, PM_POOL_PATH, sizeof(PM_POOL_PATH) - 1) == 0;
	vma->stack = strcmp(name, "[stack]") == 0;
	/* A special mapping ([vdso], [vvar] ...) has a name in brackets and no inode; the heap and named memory are ordinary. */
	vma->anonymous = vma->inode == 0 && !vma->stack &&
			 (name[0] == 0 || strcmp(name, "[heap]") == 0 || strncmp(name, "[anon:", 6) == 0);
}

static int query(int fd, uint64_t addr, struct pm_vma *out)
{
	char name[256] = "";
	struct pm_procmap_query q = {
		.size = sizeof(q),
		.query_flags = PM_QUERY_COVERING_OR_NEXT,
		.query_addr = addr,
		.vma_name_size = sizeof(name),
		.vma_name_addr = (uintptr_t)name,
	};

	if (ioctl(fd, PM_IOC_PROCMAP_QUERY, &q)) {
		if (errno != ENAMETOOLONG)
			return -errno;
		q.vma_name_size = 0;
		q.vma_name_addr = 0;
		if (ioctl(fd, PM_IOC_PROCMAP_QUERY, &q))
			return -errno;
		name[0] = '/';
	}
	*out = (struct pm_vma){
		.start = q.vma_start,
		.end = q.vma_end,
		.offset = q.vma_offset,
		.inode = q.inode,
		.prot = (q.vma_flags & PM_VMA_READABLE ? PROT_READ : 0) | (q.vma_flags & PM_VMA_WRITABLE ? PROT_WRITE : 0) |
			(q.vma_flags & PM_VMA_EXECUTABLE ? PROT_EXEC : 0),
		.shared = q.vma_flags & PM_VMA_SHARED,
	};
	judge(out, name);
	return 0;
}

/* The lines of /proc/PID/maps one by one, without stdio or malloc. */
struct lines {
	int fd;
	size_t have, at;
	char buffer[4096];
};

static char *next_line(struct lines *lines)
{
	for (;;) {
		char *end = memchr(lines->buffer + lines->at, '\n', lines->have - lines->at);

		if (end) {
			char *line = lines->buffer + lines->at;

			*end = 0;
			lines->at = (size_t)(end - lines->buffer) + 1;
			return line;
		}
		memmove(lines->buffer, lines->buffer + lines->at, lines->have - lines->at);
		lines->have -= lines->at;
		lines->at = 0;
		if (lines->have == sizeof(lines->buffer))
			lines->have = 0; /* a path of over 4 kB: its line is skipped */
		ssize_t n = read(lines->fd, lines->buffer + lines->have, sizeof(lines->buffer) - lines->have);

		if (n <= 0)
			return NULL;
		lines->have += (size_t)n;
	}
}

static bool parse(const char *line, struct pm_vma *out)
{
	unsigned long start, end, offset, inode;
	char perms[5];
	int at = 0;

	if (sscanf(line, "%lx-%lx %4s %lx %*s %lu %n", &start, &end, perms, &offset, &inode, &at) < 5)
		return false;
	*out = (struct pm_vma){
		.start = start,
		.end = end,
		.offset = offset,
		.inode = inode,
		.prot = (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) |
			(perms[2] == 'x' ? PROT_EXEC : 0),
		.shared = perms[3] == 's',
	};
	judge(out, at ? line + at : "");
	return true;
}

static _Thread_local int kept_fd __attribute__((tls_model("initial-exec"))) = -1;

void pm_vma_begin(void)
{
	kept_fd = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
}

void pm_vma_end(void)
{
	if (kept_fd >= 0)
		close(kept_fd);
	kept_fd = -1;
}

int pm_vma_find(uint64_t addr, struct pm_vma *out)
{
	int error = kept_fd >= 0 ? query(kept_fd, addr, out) : -ENOTTY, fd;

	/* A program may have closed the descriptor, or even opened another file by its number: only an answer counts. */
	if (error == 0 || error == -ENOENT)
		return error;
	fd = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	error = query(fd, addr, out);
	if (error == -ENOTTY || error == -EINVAL) {
		struct lines lines = { .fd = fd };
		char *line;

		error = -ENOENT;
		while (error && (line = next_line(&lines)))
			if (parse(line, out) && out->end > addr)
				error = 0;
	}
	close(fd);
	return error;
}

/* What was counted last, and the signs by which a later change would show. */
static struct {
	long count;
	uint64_t size; /* of the address space, pages */
	uint32_t calls;
	int64_t at, good_ms;
} counted;

static uint64_t read_size(void)
{
	char text[32];
	int fd = open("/proc/thread-self/statm", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	return strtoul(text, NULL, 10);
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * How many mappings there are; the kernel allows vm.max_map_count.  *async: the kind of asynchronous I/O that has a mapping among them,
 * which may go on without a descriptor; else NULL.
 *
 * Reading tens of thousands of lines for each request would cost more than the request: the former answer stands while the program has made no
 * call on mappings, its address space has the size that it had (setting up such I/O adds to it), and for a second or so at most.
 */
long pm_vma_count(const char **async)
{
	uint64_t size = read_size();
	uint32_t calls = pm_gate_calls();
	struct lines lines = { .fd = -1 };
	const char *line;
	int64_t now = now_ms();

	*async = NULL;
	if (size && size == counted.size && calls == counted.calls && now - counted.at < counted.good_ms)
		return counted.count;
	lines.fd = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
	if (lines.fd < 0)
		return -errno;
	counted.count = 0;
	while ((line = next_line(&lines))) {
		const char *bracket = strchr(line, '[');

		counted.count++;
		if (bracket && strncmp(bracket, "[aio]", 5) == 0)
			*async = "aio";
		if (bracket && strncmp(bracket, "[io_uring]", 10) == 0)
			*async = "io_uring";
	}
	close(lines.fd);
	counted.size = *async ? 0 : size;
	counted.calls = calls;
	counted.at = now_ms();
	counted.good_ms = 1000 + (counted.at - now) * 50; /* reading takes at most a fiftieth of the time */
	return counted.count;
}

void pm_vma_note(long more)
{
	counted.count += more;
}

/*
 * Mappings with a property that would not outlive a replacement: locked, not inherited or wiped by fork(2), not dumped, registered with a userfaultfd, with
 * a protection key.  Asked once, by an agent that came in later than they did.
 */
void pm_vma_each_special(void (*see)(uint64_t start, uint64_t end))
{
	static const char *const flags[] = { " lo", " dc", " wf", " dd", " um", " uw", " gd" };
	struct lines lines = { .fd = open("/proc/thread-self/smaps", O_RDONLY | O_CLOEXEC) };
	unsigned long start = 0, end = 0;
	bool special = false;
	char *line;

	if (lines.fd < 0)
		return;
	while ((line = next_line(&lines))) {
		if (line[0] < 'A' || line[0] > 'Z') {
			special = false;
			sscanf(line, "%lx-%lx", &start, &end);
		} else if (strncmp(line, "ProtectionKey:", 14) == 0) {
			special = atoi(line + 14) != 0;
		} else if (strncmp(line, "VmFlags:", 8) == 0) { /* comes last */
			for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++)
				special = special || strstr(line + 8, flags[i]);
			if (special && end > start)
				see(start, end);
		}
	}
	close(lines.fd);
}
