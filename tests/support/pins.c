/* SPDX-License-Identifier: MIT */
/*
 * pins WHAT PAGES FOLDER: a program with memory marked as mergeable, alike in all that are started with so many pages.  Told "begin", it has the kernel take hold of its second page to write to
 * it later, without a fault; told "finish", it lets that write take place, and says whether it "arrived" or was "lost".  WHAT:
 *
 * io_uring: a registered buffer, into which a pipe is read.  ring: the same, by a ring without a descriptor or a mapping of the kernel's.  fuse, fuse-direct: a read(2) of a file of a FUSE server, mounted at FOLDER, that answers late; its pages
 * are held although the file is, or is not, opened for O_DIRECT.  process_vm: another process's process_vm_writev(2), whose source is a page that is not there yet.
 * Told "grow", it doubles the memory by mremap(2).
 * segment: FOLDER is a file, of which the memory is a shared mapping; it is registered with a ring and unmapped, and written to nevertheless.
 * xdp: the memory is registered with a socket of AF_XDP; nothing is written.  vmsplice: a page in a pipe, which is read in the end: it must hold what it held.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, MERGEABLE = 12, HELD = 1, NEW = 0x5a, AF_XDP_ = 44, SOL_XDP_ = 283, XDP_UMEM_REG_ = 4 };

static unsigned char *memory;
static size_t pages;
static const char *what, *folder;
static int go[2], told[2]; /* pipes to and from the helper process */
static pid_t helper;

static unsigned char *held(void)
{
	return memory + HELD * PAGE;
}

static bool wait_for(int fd)
{
	char byte;

	return read(fd, &byte, 1) == 1;
}

/* ---- a server of one file, "file", whose reads are answered when a byte comes ---- */

static void reply(int fuse, uint64_t unique, int error, const void *body, size_t length)
{
	struct fuse_out_header header = { .len = (uint32_t)(sizeof(header) + length), .error = error, .unique = unique };
	struct iovec parts[] = { { &header, sizeof(header) }, { (void *)(uintptr_t)body, length } };

	if (writev(fuse, parts, 2) < 0 && errno != ENOENT) /* interrupted meanwhile */
		_exit(3);
}

static struct fuse_attr attributes(uint64_t node)
{
	return (struct fuse_attr){ .ino = node, .mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0644, .nlink = 1, .size = node == 1 ? 0 : PAGE, .blksize = PAGE };
}

static void serve(int fuse, bool direct)
{
	static char in[1 << 20], data[PAGE];
	const struct fuse_in_header *header = (void *)in;

	memset(data, NEW, sizeof(data));
	while (read(fuse, in, sizeof(in)) > 0) {
		switch (header->opcode) {
		case FUSE_INIT: {
			struct fuse_init_out out = { .major = 7, .minor = 31, .max_write = 65536, .max_readahead = 0 };

			reply(fuse, header->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_LOOKUP: {
			struct fuse_entry_out out = { .nodeid = 2, .attr = attributes(2) };

			reply(fuse, header->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_GETATTR: {
			struct fuse_attr_out out = { .attr = attributes(header->nodeid) };

			reply(fuse, header->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_OPEN: {
			struct fuse_open_out out = { .fh = 1, .open_flags = direct ? FOPEN_DIRECT_IO : 0 };

			reply(fuse, header->unique, 0, &out, sizeof(out));
			break;
		}
		case FUSE_READ:
			if (write(told[1], "r", 1) != 1 || !wait_for(go[0]))
				_exit(0);
			reply(fuse, header->unique, 0, data, sizeof(data));
			break;
		case FUSE_INTERRUPT:
		case FUSE_FORGET:
			break;
		case FUSE_FLUSH:
		case FUSE_RELEASE:
		case FUSE_ACCESS:
			reply(fuse, header->unique, 0, NULL, 0);
			break;
		default:
			reply(fuse, header->unique, -ENOSYS, NULL, 0);
		}
	}
}

static bool start_server(bool direct)
{
	char options[96];
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	/* Among mounts of its own, which go with it. */
	if (fuse < 0 || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("pins", folder, "fuse", MS_NOSUID | MS_NODEV, options))
		return false;
	helper = fork();
	if (helper == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(go[1]);
		serve(fuse, direct);
		_exit(0);
	}
	close(fuse); /* a device that the agent would know */
	return helper > 0;
}

static void *read_file(void *unused)
{
	char path[256];
	int fd;

	(void)unused;
	snprintf(path, sizeof(path), "%s/file", folder);
	fd = open(path, O_RDONLY | (strcmp(what, "fuse-direct") == 0 ? O_DIRECT : 0));
	if (fd < 0 || read(fd, held(), PAGE) != PAGE)
		perror("pins: read");
	close(fd);
	return NULL;
}

/* ---- another process that writes here ---- */

static pid_t parent;

static void *write_over(void *source)
{
	struct iovec local = { source, PAGE }, remote = { held(), PAGE };
	char done = process_vm_writev(parent, &local, 1, &remote, 1, 0) == PAGE ? 'w' : 'e';

	if (write(told[1], &done, 1) != 1)
		_exit(3);
	return NULL;
}

/* The page that is to be written is held while the kernel waits for the source's content. */
static void write_from_helper(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	unsigned char *source = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register request = { .range = { (uintptr_t)source, PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	static unsigned char data[PAGE] __attribute__((aligned(4096)));
	struct uffdio_copy copy = { .dst = (uintptr_t)source, .src = (uintptr_t)data, .len = PAGE };
	struct uffd_msg message;
	pthread_t writer;

	memset(data, NEW, sizeof(data));
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &request) || !wait_for(go[0]) ||
	    pthread_create(&writer, NULL, write_over, source))
		return;
	if (read(uffd, &message, sizeof(message)) != (ssize_t)sizeof(message) || write(told[1], "h", 1) != 1 || !wait_for(go[0]) ||
	    ioctl(uffd, UFFDIO_COPY, &copy))
		return;
	pthread_join(writer, NULL);
	wait_for(go[0]);
}

static bool start_writer(void)
{
	parent = getpid();
	helper = fork();
	if (helper == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(go[1]);
		write_from_helper();
		_exit(0);
	}
	return helper > 0;
}

/* ---- a ring ---- */

static struct {
	int fd, pipe[2];
	bool bare;
	struct io_uring_params parameters;
	unsigned char *queues;
	struct io_uring_sqe *entries;
	uint64_t buffer;
} ring = { .fd = -1 };

static uint32_t *ring_word(uint32_t offset)
{
	return (uint32_t *)(void *)(ring.queues + offset);
}

static bool start_ring(bool bare)
{
	struct iovec buffer = { held(), PAGE };
	struct io_uring_params *p = &ring.parameters;

	ring.bare = bare;
	ring.buffer = (uintptr_t)held();
	if (bare) {
		ring.queues = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ring.entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		p->flags = 1u << 14 | 1u << 15; /* IORING_SETUP_NO_MMAP, _REGISTERED_FD_ONLY: Linux 6.5 */
		p->cq_off.resv2 = (uintptr_t)ring.queues; /* user_addr */
		p->sq_off.resv2 = (uintptr_t)ring.entries;
	}
	ring.fd = (int)syscall(SYS_io_uring_setup, 4u, p);
	if (ring.fd < 0 || pipe(ring.pipe) ||
	    syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS | (bare ? 1u << 31 : 0u) /* IORING_REGISTER_USE_REGISTERED_RING */, &buffer, 1u))
		return false;
	if (bare)
		return true;
	ring.queues = mmap(NULL, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe) + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	ring.entries = mmap(NULL, p->sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
	return ring.queues != MAP_FAILED && ring.entries != MAP_FAILED && p->features & IORING_FEAT_SINGLE_MMAP;
}

static bool read_by_ring(void)
{
	static char data[PAGE];

	memset(data, NEW, sizeof(data));
	ring.entries[0] = (struct io_uring_sqe){ .opcode = IORING_OP_READ_FIXED, .fd = ring.pipe[0], .off = UINT64_MAX, .addr = ring.buffer, .len = PAGE };
	ring_word(ring.parameters.sq_off.array)[0] = 0;
	__atomic_store_n(ring_word(ring.parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (write(ring.pipe[1], data, PAGE) != PAGE)
		return false;
	return syscall(SYS_io_uring_enter, ring.fd, 1u, 1u, IORING_ENTER_GETEVENTS | (ring.bare ? 1u << 4 : 0u) /* _REGISTERED_RING */, NULL, (size_t)0) == 1;
}

/* ---- */

static pthread_t reader;
static int pipe_fds[2];

static bool begin(void)
{
	if (strcmp(what, "io_uring") == 0 || strcmp(what, "ring") == 0)
		return start_ring(strcmp(what, "ring") == 0);
	if (strcmp(what, "segment") == 0)
		return start_ring(false) && !munmap(memory, pages * PAGE);
	if (strcmp(what, "xdp") == 0) {
		struct {
			uint64_t addr, len;
			uint32_t chunk_size, headroom, flags, more;
		} umem = { .addr = (uintptr_t)memory, .len = pages * PAGE, .chunk_size = PAGE };

		ring.fd = socket(AF_XDP_, SOCK_RAW, 0);
		return ring.fd >= 0 && !setsockopt(ring.fd, SOL_XDP_, XDP_UMEM_REG_, &umem, sizeof(umem) - 4);
	}
	if (strcmp(what, "vmsplice") == 0) {
		struct iovec page = { held(), PAGE };

		return !pipe(pipe_fds) && vmsplice(pipe_fds[1], &page, 1, 0) == PAGE;
	}
	if (!helper)
		return false;
	if (strcmp(what, "process_vm") == 0)
		return write(go[1], "b", 1) == 1 && wait_for(told[0]);
	return !pthread_create(&reader, NULL, read_file, NULL) && wait_for(told[0]);
}

static bool finish(void)
{
	if (ring.queues)
		return read_by_ring();
	if (strcmp(what, "xdp") == 0)
		return !close(ring.fd);
	if (strcmp(what, "vmsplice") == 0) {
		static unsigned char before[PAGE], now[PAGE];

		memcpy(before, held(), PAGE);
		memset(held(), NEW, PAGE); /* the reader of a pipe gets the one or the other, but never a mixture, or somebody else's */
		return read(pipe_fds[0], now, PAGE) == PAGE && (memcmp(now, before, PAGE) == 0 || memcmp(now, held(), PAGE) == 0);
	}
	if (write(go[1], "f", 1) != 1)
		return false;
	return strcmp(what, "process_vm") == 0 ? wait_for(told[0]) : !pthread_join(reader, NULL);
}

static bool is_new(void)
{
	for (size_t i = 0; i < PAGE; i++)
		if (held()[i] != NEW)
			return false;
	return true;
}

static bool grow(void)
{
	unsigned char *grown = mremap(memory, pages * PAGE, 2 * pages * PAGE, MREMAP_MAYMOVE);
	bool clear = grown != MAP_FAILED;

	for (size_t i = pages * PAGE; clear && i < 2 * pages * PAGE; i++)
		clear = grown[i] == 0;
	if (clear)
		memory = grown;
	return clear;
}

int main(int argc, char **argv)
{
	char line[32];
	bool ready = argc > 2 && !pipe(go) && !pipe(told);

	what = argc > 1 ? argv[1] : "nothing";
	pages = argc > 2 ? (size_t)atol(argv[2]) : 256;
	folder = argc > 3 ? argv[3] : "/mnt";
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (strcmp(what, "segment") == 0) {
		int fd = open(folder, O_RDWR | O_CLOEXEC);

		memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ready = ready && memory != MAP_FAILED;
		close(fd);
	}
	if (strncmp(what, "fuse", 4) == 0)
		ready = ready && start_server(strcmp(what, "fuse") == 0);
	if (strcmp(what, "process_vm") == 0)
		ready = ready && start_writer();
	srand(1);
	for (size_t i = 0; i < pages * PAGE && strcmp(what, "segment") != 0; i++)
		memory[i] = (unsigned char)rand();
	if (strcmp(what, "segment") != 0)
		madvise(memory, pages * PAGE, MERGEABLE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "begin", 5) == 0)
			printf("%s\n", ready && begin() ? "done" : "can't");
		else if (strncmp(line, "grow", 4) == 0)
			printf("%s\n", grow() ? "done" : "can't");
		else if (strncmp(line, "finish", 6) == 0)
			printf("%s\n", !finish() ? "can't" : strcmp(what, "xdp") == 0 || strcmp(what, "segment") == 0 || is_new() ? "arrived" : "lost");
	}
	if (helper > 0) {
		kill(helper, SIGKILL);
		waitpid(helper, NULL, 0);
	}
	return 0;
}
