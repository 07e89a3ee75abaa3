/* SPDX-License-Identifier: MIT */
/*
 * The agent's thread and its socket: says hello, tells the marks, carries out requests, looks for a daemon again when it is gone.
 *
 * The socket is the only descriptor that is kept.  Programs close descriptors that they did not open, and open others under the same number;
 * so it lives high up, and its cookie is looked at before each use.  What is not ours any more is left alone.
 */
#include "link.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "marks.h"
#include "proto.h"
#include "replace.h"

enum { STACK_BYTES = 256 << 10, FD_FLOOR = 500, RETRY_FIRST_MS = 50, RETRY_MOST_MS = 1000, LOOK_AGAIN_MS = 10000 };

static char socket_path[108], domain[PM_DOMAIN_MAX];
static int sock = -1;
static uint64_t sock_cookie;
static bool started, was_connected, preloaded, forked;
static int32_t fork_parent;
static pid_t owner; /* of this state: a child of vfork(2) shares it, but must not speak for its parent */
static uint32_t barriers, freeze_max_usecs;
static pthread_t thread;
static atomic_bool greeted; /* hello is said; nothing may come before it */
static _Atomic uint32_t refused_for; /* enum pm_refusal */
static char *stack;

static struct {
	unsigned char in[PM_MESSAGE_MAX];
	struct pm_outcome out;
} *buffers;

void pm_link_configure(const char *path, const char *its_domain, bool is_preloaded)
{
	snprintf(socket_path, sizeof(socket_path), "%s", path);
	snprintf(domain, sizeof(domain), "%s", its_domain ? its_domain : "");
	preloaded = is_preloaded;
	owner = getpid();
}

bool pm_link_configured(void)
{
	return socket_path[0] != 0;
}

static uint64_t read_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	return getsockopt(fd, SOL_SOCKET, 57 /* SO_COOKIE */, &cookie, &length) ? 0 : cookie;
}

/* The socket when it is still ours. */
static int ours(void)
{
	int fd = sock;

	if (fd >= 0 && read_cookie(fd) != sock_cookie)
		fd = sock = -1;
	return fd;
}

static void hang_up(void)
{
	int fd = ours();

	atomic_store(&greeted, false);
	if (fd >= 0)
		close(fd);
	sock = -1;
}

static int send_datagram(const void *datagram, size_t length, const int *fds, uint32_t nfds, int flags)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int) * PM_FDS_MAX)];
	} control;
	struct iovec part = { (void *)(uintptr_t)datagram, length };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	int fd = ours();

	if (fd < 0)
		return -ENOTCONN;
	if (nfds) {
		memset(&control, 0, sizeof(control));
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(header), fds, sizeof(int) * nfds);
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL | flags) < 0 ? -errno : 0;
}

static void tell(uint32_t type, const struct pm_range *ranges, uint32_t count, int flags)
{
	struct {
		struct pm_header header;
		struct pm_range ranges[64];
	} message;

	if (!atomic_load(&greeted) || getpid() != owner) /* a child that fork(2)'s handlers have not seen */
		return;
	while (count) {
		uint32_t n = count < 64 ? count : 64;

		message.header = (struct pm_header){ .type = type, .count = n };
		memcpy(message.ranges, ranges, n * sizeof(*ranges));
		int error = send_datagram(&message, sizeof(message.header) + n * sizeof(*ranges), NULL, 0, flags);
		if (error == -EAGAIN) { /* the daemon does not listen: start over, all marks are told again then */
			shutdown(ours(), SHUT_RDWR);
			return;
		}
		ranges += n;
		count -= n;
	}
}

/* Tell ranges; from any thread, without waiting.  Lost when there is no daemon: marks are told again when there is. */
void pm_link_tell(uint32_t type, const struct pm_range *ranges, uint32_t count)
{
	tell(type, ranges, count, MSG_DONTWAIT);
}

void pm_link_tell_waiting(uint32_t type, const struct pm_range *ranges, uint32_t count)
{
	tell(type, ranges, count, 0);
}

static int open_tracker(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = PM_UFFD_FEATURE_WP_ASYNC | PM_UFFD_FEATURE_WP_UNPOPULATED };
	int fd = pm_userfaultfd(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

struct search {
	char *refusal;
	const int *skip; /* descriptors of the request itself */
	uint32_t nskip;
	bool direct; /* a file is open with O_DIRECT */
};

/* Descriptors by which pages may be written behind the page tables' back, or whose owner has registered memory that must stay what it is. */
static int see_descriptor(const char *name, void *context)
{
	static const struct {
		const char *prefix, *name;
	} devices[] = {
		{ "anon_inode:[io_uring]", "io_uring" }, { "anon_inode:[vfio", "vfio" },   { "/dev/vfio/", "vfio" },
		{ "/dev/vhost-", "vhost" },		 { "/dev/infiniband/", "rdma" },
		{ "/dev/nvidia", "gpu" },		 { "anon_inode:[userfaultfd]", "userfaultfd" },
	};
	struct search *search = context;
	char path[64], target[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%.16s", name);
	n = readlink(path, target, sizeof(target) - 1);
	if (n <= 0)
		return 0;
	target[n] = 0;
	if (target[0] == '/' && fcntl(atoi(name), F_GETFL) & O_DIRECT)
		search->direct = true;
	for (uint32_t i = 0; i < search->nskip; i++)
		if (search->skip[i] == atoi(name))
			return 0;
	for (size_t i = 0; i < sizeof(devices) / sizeof(*devices); i++)
		if (strncmp(target, devices[i].prefix, strlen(devices[i].prefix)) == 0) {
			snprintf(search->refusal, PM_DOMAIN_MAX, "%s", devices[i].name);
			return 1;
		}
	return 0;
}

void pm_link_refuse(uint32_t why, bool on)
{
	if (on)
		atomic_fetch_or(&refused_for, why);
	else
		atomic_fetch_and(&refused_for, ~why);
}

/* Why this process can't be merged, "" if it can. */
static bool find_refusal(char *refusal, const int *skip, uint32_t nskip, long *vmas, bool *direct)
{
	struct search search = { refusal, skip, nskip, false };
	int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint32_t called = atomic_load(&refused_for);
	const char *async;

	refusal[0] = 0;
	*direct = false;
	if (called)
		snprintf(refusal, PM_DOMAIN_MAX, "%s", called & PM_REFUSE_LOCKED ? "mlockall" : "clone-vm");
	if (dir < 0)
		return refusal[0] != 0;
	*vmas = pm_vma_count(&async);
	if (async)
		snprintf(refusal, PM_DOMAIN_MAX, "%s", async);
	pm_dir_each(dir, see_descriptor, &search);
	close(dir);
	*direct = search.direct;

	return refusal[0] != 0;
}

/* The barriers that this process can use; PAGEMERGE_BARRIER leaves those that it names (and sealed, which needs no leave). */
static uint32_t find_barriers(void)
{
	const char *only = getenv("PAGEMERGE_BARRIER");
	uint32_t found = PM_BARRIER_SEALED;

	if ((!only || strstr(only, "uffd")) && pm_uffd_possible())
		found |= PM_BARRIER_UFFD;
	if (!only || strstr(only, "freeze"))
		found |= PM_BARRIER_FREEZE;
	return found;
}

static int say_hello(void)
{
	static const char *const files[] = { "/proc/self/pagemap", "/proc/self/maps", "/proc/self/mem" };
	struct {
		struct pm_header header;
		struct pm_hello hello;
	} message = { .header = { .type = PM_HELLO, .count = 1 } };
	struct pm_hello *hello = &message.hello;
	int fds[4], error;
	long vmas;
	bool direct;
	uint32_t n = 0;

	barriers = find_barriers();
	*hello = (struct pm_hello){
		.version = PM_PROTOCOL_VERSION,
		.flags = (preloaded ? PM_HELLO_PRELOADED : PM_HELLO_IMPORTED) | (forked ? PM_HELLO_FORKED : 0) |
			 (pm_marks_all() ? PM_HELLO_ALL : 0) | (was_connected ? PM_HELLO_BACK : 0),
		.barriers = barriers,
		.parent = forked ? fork_parent : 0,
		.page_size = PM_PAGE_SIZE,
		.own_start = (uintptr_t)stack,
		.own_end = pm_page_up((uintptr_t)stack + STACK_BYTES + sizeof(*buffers)),
	};
	memcpy(hello->domain, domain, sizeof(domain));
	find_refusal(hello->refusal, NULL, 0, &vmas, &direct);
	for (uint32_t i = 0; i < 3; i++) {
		fds[n] = open(files[i], O_RDONLY | O_CLOEXEC);
		if (fds[n] >= 0) {
			hello->fds |= 1u << i;
			n++;
		}
	}
	fds[n] = open_tracker();
	if (fds[n] >= 0) {
		hello->fds |= PM_FD_UFFD;
		n++;
	}
	error = send_datagram(&message, sizeof(message), fds, n, 0);
	while (n)
		close(fds[--n]);
	return error;
}

static int dial(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), high;

	if (fd < 0)
		return -errno;
	memcpy(address.sun_path, socket_path, sizeof(address.sun_path));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		return -ECONNREFUSED;
	}
	fcntl(fd, F_SETFL, 0); /* nothing but the connection must not wait */
	high = fcntl(fd, F_DUPFD_CLOEXEC, FD_FLOOR);
	if (high >= 0) {
		close(fd);
		fd = high;
	}
	atomic_store(&greeted, false);
	sock_cookie = read_cookie(fd);
	sock = fd;
	int error = say_hello();
	if (error) {
		hang_up();
		return error;
	}
	was_connected = true;
	atomic_store(&greeted, true);
	forked = false;
	return 0;
}

/* 0: the daemon is gone. With *nfds descriptors, that are the caller's. */
static size_t receive(int *fds, uint32_t *nfds)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int) * PM_FDS_MAX)];
	} control;
	struct iovec part = { buffers->in, sizeof(buffers->in) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	ssize_t n = recvmsg(ours(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	*nfds = 0;
	if (n <= 0)
		return 0;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header))
		if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
			*nfds = (uint32_t)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds, CMSG_DATA(header), *nfds * sizeof(int));
		}
	return (size_t)n;
}

/* True when there is an answer to send. */
static bool carry_out(size_t length, const int *fds, uint32_t nfds)
{
	const char *reason;
	struct pm_header *header = (void *)buffers->in;
	const void *body = buffers->in + sizeof(*header);
	struct pm_outcome *out = &buffers->out;
	struct timespec cpu;
	char refusal[PM_DOMAIN_MAX];
	long vmas;
	bool direct;

	if (pm_message_check(buffers->in, length, false, &reason)) {
		hang_up(); /* not the daemon's language */
		return false;
	}
	memset(&out->header, 0, sizeof(out->header) + sizeof(out->result));
	out->header.type = PM_RESULT;
	out->header.seq = header->seq;
	if (header->type == PM_WELCOME) {
		const struct pm_welcome *welcome = body;

		if (welcome->barrier)
			barriers &= welcome->barrier;
		freeze_max_usecs = welcome->freeze_max_usecs;
		prctl(PR_SET_PTRACER, welcome->daemon_pid, 0, 0, 0);
		return false;
	}
	if (header->type == PM_MERGE && find_refusal(refusal, fds, nfds, &vmas, &direct)) {
		out->result.error = -EBUSY;
	} else if (header->type == PM_MERGE) {
		struct pm_request request = {
			.runs = body, .count = header->count, .fds = fds, .nfds = nfds,
			.tracker = -1, .barrier = barriers, .freeze_max_usecs = freeze_max_usecs, .vmas = vmas, .direct = direct,
		};
		uint32_t named = 0;

		for (uint32_t i = 0; i < header->count; i++)
			if (request.runs[i].segment >= named)
				named = request.runs[i].segment + 1;
		if (nfds == named + 1) /* the daemon adds our own tracker's descriptor at the end */
			request.tracker = fds[named], request.nfds = named;
		if (named > nfds)
			out->result.error = -EBADF;
		else
			pm_merge(&request, out);
	} else if (header->type == PM_UNMERGE) {
		pm_unmerge(body, header->count, out);
	} else if (header->type == PM_ZERO) {
		pm_zero(body, header->count, out);
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
	out->result.cpu_ns = (uint64_t)cpu.tv_sec * 1000000000 + (uint64_t)cpu.tv_nsec;
	return true;
}

static void answer(void)
{
	const struct pm_outcome *out = &buffers->out;

	send_datagram(out, sizeof(out->header) + sizeof(out->result) + out->header.count * sizeof(out->failed[0]), NULL, 0, 0);
}

static void *run(void *unused)
{
	unsigned int wait_ms = RETRY_FIRST_MS;
	int fds[PM_FDS_MAX];
	uint32_t nfds;

	(void)unused;
	prctl(PR_SET_NAME, "pagemerge");
	for (;;) {
		/* Descriptors are never open outside of the lock: a fork(2) would take them along. */
		int error = 0;

		if (ours() < 0) {
			pm_replace_lock();
			error = dial();
			pm_replace_unlock();
			if (!error)
				pm_marks_tell();
		}
		if (error) {
			nanosleep(&(struct timespec){ .tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * 1000000 }, NULL);
			wait_ms = wait_ms * 2 < RETRY_MOST_MS ? wait_ms * 2 : RETRY_MOST_MS;
			continue;
		}
		wait_ms = RETRY_FIRST_MS;
		int fd = ours();

		if (fd < 0 || poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, LOOK_AGAIN_MS) <= 0)
			continue;
		pm_replace_lock();
		size_t length = receive(fds, &nfds);
		bool done = length && carry_out(length, fds, nfds);

		if (!length)
			hang_up();
		while (nfds)
			close(fds[--nfds]);
		pm_replace_unlock();
		if (done)
			answer(); /* not under the lock: the daemon may make us wait */
	}
	return NULL;
}

int pm_link_start(void)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (started || !pm_link_configured())
		return started ? 0 : -ENOTCONN;
	if (!stack) {
		stack = pm_mmap(NULL, STACK_BYTES + sizeof(*buffers), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (stack == MAP_FAILED) {
			stack = NULL;
			return -ENOMEM;
		}
		buffers = (void *)(stack + STACK_BYTES);
	}
	started = true;
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, stack, STACK_BYTES);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, &attributes, run, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		started = false;
	return -error;
}

/* In a forked child: the thread is not there, the socket is the parent's. */
void pm_link_forked(void)
{
	bool again = started;

	hang_up();
	owner = getpid();
	fork_parent = getppid();
	forked = was_connected;
	was_connected = started = false;
	if (again)
		pm_link_start();
}

bool pm_link_owns(uint64_t start, uint64_t end)
{
	return stack && start < (uintptr_t)stack + STACK_BYTES + sizeof(*buffers) && end > (uintptr_t)stack;
}

bool pm_link_connected(void)
{
	return ours() >= 0;
}
