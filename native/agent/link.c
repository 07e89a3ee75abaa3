/* SPDX-License-Identifier: MIT */
/*
 * The agent's thread and its socket: says hello, tells the marks, carries out requests and errands, looks for a daemon again when it is gone.
 *
 * The thread has a descriptor table of its own (table.c).  Where it can't have one, the socket is the only descriptor that is kept.  Programs close descriptors
 * that they did not open, and open others under the same number; so it lives high up then, and its cookie is looked at before each use.  What is not ours
 * any more is left alone.
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
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "calls.h"
#include "hashing.h"
#include "lock.h"
#include "marks.h"
#include "proto.h"
#include "refusal.h"
#include "replace.h"
#include "step_back.h"

enum { STACK_BYTES = 256 << 10, FD_FLOOR = 500, RETRY_FIRST_MS = 50, RETRY_MOST_MS = 1000, LOOK_AGAIN_MS = 10000, REFUSED_LOOK_MS = 1000,
       LINGER_MS = 10, SHARED_LOOK_MS = 20, NOTES_AT_ONCE = 64 };

static const uint64_t MEMORY_END = 1ULL << 55;
static char socket_path[108], domain[PM_DOMAIN_MAX];
static int sock = -1, bell_fd = -1;
static uint64_t sock_cookie;
static _Atomic bool started;
static bool welcomed, was_connected, preloaded, forked, private_table;
static int32_t fork_parent;
static uint32_t barriers, freeze_max_usecs;
static char told_refusal[PM_DOMAIN_MAX]; /* what the daemon knows */
static bool told_giving, say_anew; /* what the daemon knows is not so any more */
static pthread_t thread;
static atomic_bool greeted; /* hello is said; nothing may come before it */
static char *stack;

static struct {
	unsigned char in[PM_MESSAGE_MAX];
	struct pm_outcome out;
	struct {
		struct pm_header header;
		struct pm_hashes hashes;
		uint64_t hash[PM_HASH_PAGES];
	} hashed;
} *buffers;

void pm_link_configure(const char *path, const char *its_domain, bool is_preloaded)
{
	snprintf(socket_path, sizeof(socket_path), "%s", path);
	snprintf(domain, sizeof(domain), "%s", its_domain ? its_domain : "");
	preloaded = is_preloaded;
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

	if (fd >= 0 && !private_table && read_cookie(fd) != sock_cookie)
		fd = sock = -1;
	return fd;
}

static void hang_up(void)
{
	int fd = ours();

	atomic_store(&greeted, false);
	pm_marks_listen(false);
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

/*
 * Wait until the socket is ready for `events`, there is an errand or a note, or the time is over.  True: the socket is ready, or broken.
 *
 * In a table that is shared with the program no second descriptor is kept, only the signal is waited for, and the socket looked at now and then.
 */
static bool wait_for(short events, int timeout_ms)
{
	struct pollfd fds[2] = { { .fd = ours(), .events = events }, { .fd = bell_fd, .events = POLLIN } };

	if (bell_fd < 0) {
		int most = fds[0].fd >= 0 && timeout_ms > SHARED_LOOK_MS ? SHARED_LOOK_MS : timeout_ms;
		struct timespec limit = { .tv_sec = most / 1000, .tv_nsec = most % 1000 * 1000000 };
		uint64_t bell = 1ULL << (PM_WAKE_SIGNAL - 1);

		if (poll(fds, 1, 0) == 0)
			syscall(SYS_rt_sigtimedwait, &bell, NULL, &limit, sizeof(bell));
		poll(fds, 1, 0);
	} else if (poll(fds, 2, timeout_ms) > 0 && fds[1].revents) {
		struct signalfd_siginfo info[16];

		while (read(bell_fd, info, sizeof(info)) == (ssize_t)sizeof(info))
			;
	}
	pm_errand_serve();
	return fds[0].revents != 0;
}

/* Send, and wait for the daemon to take it; errands are run meanwhile. */
static int send_surely(const void *datagram, size_t length)
{
	int error;

	while ((error = send_datagram(datagram, length, NULL, 0, MSG_DONTWAIT)) == -EAGAIN)
		wait_for(POLLOUT, LOOK_AGAIN_MS);
	return error;
}

static void send_ranges(uint32_t type, const struct pm_range *ranges, uint32_t count)
{
	struct {
		struct pm_header header;
		struct pm_range ranges[NOTES_AT_ONCE];
	} message;

	while (count) {
		uint32_t n = count < NOTES_AT_ONCE ? count : NOTES_AT_ONCE;

		message.header = (struct pm_header){ .type = type, .count = n };
		memcpy(message.ranges, ranges, n * sizeof(*ranges));
		send_surely(&message, sizeof(message.header) + n * sizeof(*ranges));
		ranges += n;
		count -= n;
	}
}

static void send_marks(const struct pm_range *ranges, uint32_t count)
{
	send_ranges(PM_MARK, ranges, count);
}

/* The daemon did not keep up with the program's calls, and some could not be noted: all marks are void, and told again. */
static void tell_anew(void)
{
	struct pm_range everything = { 0, MEMORY_END, PM_GONE_UNMAPPED, 0 }, all = { 0, 0, 0, 0 };

	pm_marks_listen(true);
	all.flags = pm_marks_all();
	send_ranges(PM_GONE, &everything, 1);
	send_ranges(PM_ALL, &all, 1);
	pm_marks_each(send_marks);
}

/* Whether there were any. */
static bool send_notes(void)
{
	struct pm_note notes[NOTES_AT_ONCE];
	struct pm_range ranges[NOTES_AT_ONCE];
	bool some = false;
	uint32_t n;

	while (atomic_load(&greeted) && (n = pm_marks_notes(notes, NOTES_AT_ONCE))) {
		some = true;
		for (uint32_t i = 0, k; i < n; i += k) {
			for (k = 0; i + k < n && notes[i + k].type == notes[i].type; k++)
				ranges[k] = notes[i + k].range;
			send_ranges(notes[i].type, ranges, k);
		}
	}
	if (atomic_load(&greeted) && pm_marks_missed())
		tell_anew();
	return some;
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

/* The barriers that this process can use; PAGEMERGE_BARRIER leaves those that it names (and sealed, which needs no leave). */
static uint32_t find_barriers(void)
{
	const char *only = getenv("PAGEMERGE_BARRIER");
	uint32_t found = PM_BARRIER_SEALED;

	/* A program that closes its userfaultfd would let the writers in. */
	if ((!only || strstr(only, "uffd")) && private_table && pm_uffd_possible())
		found |= PM_BARRIER_UFFD;
	if (!only || strstr(only, "freeze"))
		found |= PM_BARRIER_FREEZE;
	return found;
}

/* A file of its own that the program could close, or a limit or filter that forbids to write it, or to have many: the daemon reads and writes then. */
static bool can_give(void)
{
	struct rlimit size, files;

	return private_table && prctl(PR_GET_SECCOMP) == 0 && !getrlimit(RLIMIT_FSIZE, &size) && size.rlim_cur >= PM_SEGMENT_BYTES &&
	       !getrlimit(RLIMIT_NOFILE, &files) && files.rlim_cur >= 2 * PM_FDS_MAX && !getenv("PAGEMERGE_NO_GIVING");
}

static int say_hello(void)
{
	static const char *const files[] = { "/proc/thread-self/pagemap", "/proc/thread-self/maps", "/proc/thread-self/mem" };
	struct {
		struct pm_header header;
		struct pm_hello hello;
	} message = { .header = { .type = PM_HELLO, .count = 1 } };
	struct pm_hello *hello = &message.hello;
	struct pm_finding finding;
	int fds[4], error;
	uint32_t n = 0;

	pm_request_end(false); /* what the program does from now on tells whether it is at work */
	barriers = find_barriers();
	told_giving = can_give();
	*hello = (struct pm_hello){
		.version = PM_PROTOCOL_VERSION,
		.flags = (preloaded ? PM_HELLO_PRELOADED : PM_HELLO_IMPORTED) | (forked ? PM_HELLO_FORKED : 0) |
			 (pm_marks_all() ? PM_HELLO_ALL : 0) | (was_connected ? PM_HELLO_BACK : 0) | (private_table ? 0 : PM_HELLO_SHARED_TABLE) |
			 (told_giving ? PM_HELLO_GIVES : 0),
		.barriers = barriers,
		.parent = forked ? fork_parent : 0,
		.page_size = PM_PAGE_SIZE,
		.own_start = (uintptr_t)stack,
		.own_end = pm_page_up((uintptr_t)stack + STACK_BYTES + sizeof(*buffers)),
	};
	memcpy(hello->domain, domain, sizeof(domain));
	pm_refusal_find(&finding, NULL, 0);
	memcpy(hello->refusal, finding.refusal, sizeof(finding.refusal));
	memcpy(told_refusal, finding.refusal, sizeof(finding.refusal));
	say_anew = false;
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
	high = private_table ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FD_FLOOR);
	if (high >= 0) {
		close(fd);
		fd = high;
	}
	atomic_store(&greeted, false);
	sock_cookie = read_cookie(fd);
	sock = fd;
	pm_marks_listen(true); /* what changes from here on is told after all that is there now */
	int error = say_hello();
	if (error) {
		hang_up();
		return error;
	}
	was_connected = true;
	welcomed = false;
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

static void hash(const struct pm_header *request, const struct pm_range *ranges)
{
	buffers->hashed.header = (struct pm_header){ .type = PM_HASHES, .seq = request->seq };
	pm_request_begin();
	buffers->hashed.header.count = pm_hash_ranges(ranges, request->count, buffers->hashed.hash);
	pm_request_end(false);
	buffers->hashed.hashes = (struct pm_hashes){ .cpu_ns = pm_clock_ns(CLOCK_THREAD_CPUTIME_ID), .at_work = pm_is_delicate() };
}

/* The answer to be sent, or NULL. */
static const struct pm_header *carry_out(size_t length, const int *fds, uint32_t nfds)
{
	const char *reason;
	struct pm_header *header = (void *)buffers->in;
	const void *body = buffers->in + sizeof(*header);
	struct pm_outcome *out = &buffers->out;
	struct pm_finding finding;
	bool changes = header->type == PM_MERGE || header->type == PM_GIVE || header->type == PM_ZERO || header->type == PM_UNMERGE;

	if (pm_message_check(buffers->in, length, false, &reason)) {
		hang_up(); /* not the daemon's language */
		return NULL;
	}
	memset(&out->header, 0, sizeof(out->header) + sizeof(out->result));
	out->header.type = PM_RESULT;
	out->header.seq = header->seq;
	if (header->type == PM_WELCOME) {
		const struct pm_welcome *welcome = body;

		welcomed = true;
		if (welcome->barrier)
			barriers &= welcome->barrier;
		freeze_max_usecs = welcome->freeze_max_usecs;
		pm_step_back(false); /* the daemon before may have said otherwise */
		prctl(PR_SET_PTRACER, welcome->daemon_pid, 0, 0, 0);
		return NULL;
	}
	if (header->type == PM_STEP_BACK) {
		const struct pm_range *word = body;

		pm_step_back(word->flags != 0);
		return NULL;
	}
	if (header->type == PM_ADVISE || header->type == PM_ADVISE_ALL) {
		const struct pm_range *ranges = body;

		for (uint32_t i = 0; i < header->count; i++)
			if (header->type == PM_ADVISE)
				pm_calls_asked(&ranges[i]);
			else
				pm_calls_asked_all(ranges[i].flags != 0);
		return NULL; /* the marks are told as the program's own are */
	}
	if (header->type == PM_PING) {
		pm_request_begin();
		pm_request_end(false);
	}
	if (header->type == PM_HASH) {
		hash(header, body);
		return &buffers->hashed.header;
	}
	if (changes)
		pm_refusal_find(&finding, private_table ? NULL : fds, private_table ? 0 : nfds);
	if (changes && finding.refusal[0])
		say_anew = strcmp(told_refusal, finding.refusal) != 0;
	if (header->type == PM_UNMERGE) {
		pm_unmerge(body, header->count, finding.refusal[0] != 0, out);
	} else if (changes && finding.refusal[0]) {
		out->result.error = -EBUSY;
	} else if (header->type == PM_MERGE || header->type == PM_GIVE) {
		struct pm_request request = {
			.runs = body, .count = header->count, .fds = fds, .nfds = nfds,
			.tracker = -1, .barrier = barriers, .freeze_max_usecs = freeze_max_usecs, .vmas = finding.vmas, .direct = finding.direct,
			.give = header->type == PM_GIVE,
		};
		uint32_t named = 0;

		for (uint32_t i = 0; i < header->count; i++)
			if (request.runs[i].segment >= named)
				named = request.runs[i].segment + 1;
		if (nfds == named + 1) /* the daemon adds our own tracker's descriptor at the end */
			request.tracker = fds[named], request.nfds = named;
		if (named > nfds) {
			out->result.error = -EBADF;
			say_anew = told_giving && !can_give(); /* the program may have lowered its limit */
		}
		else
			pm_merge(&request, out);
	} else if (header->type == PM_ZERO) {
		pm_zero(body, header->count, out);
	}
	pm_refusal_forget();
	out->result.at_work = pm_is_delicate();
	out->result.cpu_ns = pm_clock_ns(CLOCK_THREAD_CPUTIME_ID);
	return &out->header;
}

static void answer(const struct pm_header *header)
{
	size_t entries = header->type == PM_HASHES ? sizeof(struct pm_hashes) + header->count * sizeof(uint64_t) :
						     sizeof(struct pm_result) + header->count * sizeof(struct pm_failed);

	send_surely(header, sizeof(*header) + entries);
}

/* Greet a daemon; false when there is none. */
static bool find_daemon(void)
{
	int error;

	pm_replace_lock_agent(); /* in a shared table, what is open outside of the lock a fork(2) would take along */
	error = dial();
	pm_replace_unlock();
	if (error)
		return false;
	pm_marks_each(send_marks);
	return true;
}

static void take_request(void)
{
	int fds[PM_FDS_MAX];
	uint32_t nfds;

	pm_replace_lock_agent();
	size_t length = receive(fds, &nfds);
	const struct pm_header *done = length ? carry_out(length, fds, nfds) : NULL;

	if (!length)
		hang_up();
	while (nfds)
		close(fds[--nfds]);
	pm_replace_unlock();
	if (done)
		answer(done); /* not under the lock: the daemon may make us wait */
	if (say_anew)
		hang_up(); /* and say hello again, with the reason */
}

/* A refused process is asked nothing: whether the reason still holds must be found out here. */
static void look_at_refusal(void)
{
	struct pm_finding finding;

	pm_replace_lock_agent();
	pm_refusal_find(&finding, NULL, 0);
	pm_refusal_forget();
	pm_replace_unlock();
	if (strcmp(finding.refusal, told_refusal) != 0)
		hang_up();
}

/* The thread's own things: a table, a signal by which it is woken, and what else must be there before others may know of it. */
static void settle_in(void)
{
	uint64_t all = ~(1ULL << (33 - 1)), bell = 1ULL << (PM_WAKE_SIGNAL - 1); /* 33 is glibc's for setuid(2) and the like, which waits for us */

	prctl(PR_SET_NAME, "pagemerge");
	pm_step_back(false);
	syscall(SYS_rt_sigprocmask, 0 /* SIG_BLOCK */, &all, NULL, sizeof(all)); /* glibc's own would leave the bell out */
	private_table = pm_table_separate();
	bell_fd = private_table ? (int)syscall(SYS_signalfd4, -1, &bell, sizeof(bell), SFD_CLOEXEC | SFD_NONBLOCK) : -1;
	pm_agent_is_here();
}

static void *run(void *unused)
{
	int retry_ms = RETRY_FIRST_MS, patience_ms = 0;

	(void)unused;
	settle_in();
	for (;;) {
		if (ours() < 0) {
			bool turned_away = was_connected && !welcomed;

			if (turned_away || !find_daemon()) {
				welcomed = true; /* asked again, after a while */
				wait_for(0, retry_ms);
				retry_ms = retry_ms * 2 < RETRY_MOST_MS ? retry_ms * 2 : RETRY_MOST_MS;
				continue;
			}
		}
		if (welcomed)
			retry_ms = RETRY_FIRST_MS;
		/* While there are notes we come back by ourselves, and nobody has to wake us for each. */
		patience_ms = send_notes() ? LINGER_MS : LOOK_AGAIN_MS;
		if (patience_ms > LINGER_MS && told_refusal[0])
			patience_ms = REFUSED_LOOK_MS;
		if (patience_ms > LINGER_MS && !pm_marks_idle())
			patience_ms = 0;
		if (wait_for(POLLIN, patience_ms))
			take_request();
		else if (told_refusal[0])
			look_at_refusal();
	}
	return NULL;
}

int pm_link_start(void)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	bool before_us = false;
	int error;

	if (!pm_link_configured())
		return -ENOTCONN;
	if (!atomic_compare_exchange_strong(&started, &before_us, true))
		return 0;
	if (!stack) {
		stack = pm_mmap(NULL, STACK_BYTES + sizeof(*buffers), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (stack == MAP_FAILED) {
			stack = NULL;
			started = false;
			return -ENOMEM;
		}
		buffers = (void *)(stack + STACK_BYTES);
	}
	pthread_attr_init(&attributes);
	pthread_attr_setstack(&attributes, stack, STACK_BYTES);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pm_agent_is_coming();
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&thread, &attributes, run, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error) {
		pm_agent_is_gone();
		started = false;
	}
	return -error;
}

/* In a forked child: the thread is not there, the socket is the parent's. */
void pm_link_forked(void)
{
	bool again = started;

	if (private_table)
		sock = bell_fd = -1; /* they were in the parent's thread's table */
	hang_up();
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
	return atomic_load(&greeted);
}
