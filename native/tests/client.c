/* SPDX-License-Identifier: MIT */
#include "client.h"

#include "check.h"
#include "numbers.h"
#include "page.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FILL = 1000, POKE, SUM, UNMAP, FORK, ADDRESS };

struct command {
	uint32_t type;
	uint32_t n;
	uint64_t page;
	uint64_t value;
};

static char *memory;

/* ---- the child ---- */

static void send_fds(int sock, const void *data, size_t length, const int *fds, size_t nfds)
{
	char control[CMSG_SPACE(PM_FDS_MAX * sizeof(int))] = {0};
	struct iovec iov = {(void *)(uintptr_t)data, length};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nfds) {
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		CMSG_FIRSTHDR(&message)->cmsg_level = SOL_SOCKET;
		CMSG_FIRSTHDR(&message)->cmsg_type = SCM_RIGHTS;
		CMSG_FIRSTHDR(&message)->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), fds, nfds * sizeof(int));
	}
	CHECK(sendmsg(sock, &message, MSG_NOSIGNAL) == (ssize_t)length);
}

static ssize_t receive_fds(int sock, void *data, size_t length, int *fds, size_t *nfds)
{
	char control[CMSG_SPACE(PM_FDS_MAX * sizeof(int))];
	struct iovec iov = {data, length};
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;

	*nfds = header ? (header->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	if (header)
		memcpy(fds, CMSG_DATA(header), *nfds * sizeof(int));
	return n;
}

static int tracker(void)
{
	int fd = pm_userfaultfd(O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = {.api = UFFD_API,
				 .features = PM_UFFD_FEATURE_WP_ASYNC | PM_UFFD_FEATURE_WP_UNPOPULATED};

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -1;
	}
	return fd < 0 ? -1 : fd;
}

struct answer {
	struct pm_header header;
	struct pm_result result;
	struct pm_failed failed[4000];
};

static void fail(struct answer *answer, uint64_t addr, uint32_t npages, uint32_t why)
{
	CHECK(answer->header.count < 4000);
	answer->failed[answer->header.count++] = (struct pm_failed){addr, npages, why};
	answer->result.failed += npages;
}

static void hash(int sock, const struct pm_header *header)
{
	static struct {
		struct pm_header header;
		struct pm_hashes hashes;
		uint64_t hash[PM_HASH_PAGES];
	} answer;
	const struct pm_range *ranges = (const struct pm_range *)(const void *)(header + 1);

	answer.header = (struct pm_header){.type = PM_HASHES, .seq = header->seq};
	for (uint32_t i = 0; i < header->count; i++)
		for (uint64_t at = ranges[i].start; at < ranges[i].end; at += PM_PAGE_SIZE) {
			CHECK(answer.header.count < PM_HASH_PAGES);
			answer.hash[answer.header.count++] = pm_page_key((const void *)(uintptr_t)at, ranges[i].flags & PM_HASH_WHOLE);
		}
	send_fds(sock, &answer, sizeof(answer.header) + sizeof(answer.hashes) + answer.header.count * sizeof(uint64_t), NULL, 0);
}

/* False where it can't be written any more. */
static bool give_runs(const struct pm_run *runs, uint32_t n, const int *fds)
{
	for (uint32_t r = 0; r < n; r++)
		if (!(runs[r].flags & PM_RUN_GAP) &&
		    pwrite(fds[runs[r].segment], (const void *)(uintptr_t)runs[r].addr, (size_t)runs[r].npages * PM_PAGE_SIZE,
			   (off_t)runs[r].pgoff * PM_PAGE_SIZE) != (ssize_t)runs[r].npages * PM_PAGE_SIZE)
			return false;
	return true;
}

static void merge_group(struct answer *answer, const struct pm_run *runs, uint32_t n, const int *fds)
{
	uint64_t start = runs[0].addr, end = runs[n - 1].addr + (uint64_t)runs[n - 1].npages * PM_PAGE_SIZE;
	char *aside = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE, fds[runs[0].segment],
			   (off_t)runs[0].pgoff * PM_PAGE_SIZE);

	CHECK(aside != MAP_FAILED);
	for (uint32_t r = 0; r < n; r++) {
		uint64_t at = runs[r].addr - start, length = (uint64_t)runs[r].npages * PM_PAGE_SIZE;

		CHECK(r == 0 || (runs[r].flags & PM_RUN_JOINED && runs[r].addr == runs[r - 1].addr +
				 (uint64_t)runs[r - 1].npages * PM_PAGE_SIZE));
		CHECK(runs[r].pgoff == runs[0].pgoff + at / PM_PAGE_SIZE);
		if (runs[r].flags & PM_RUN_GAP) {
			memcpy(aside + at, (char *)(uintptr_t)runs[r].addr, length);
			continue;
		}
		for (uint64_t page = 0; page < length; page += PM_PAGE_SIZE) {
			const char *mine = (char *)(uintptr_t)(runs[r].addr + page);

			if (memcmp(aside + at + page, mine, PM_PAGE_SIZE) == 0) {
				answer->result.merged++;
				continue;
			}
			memcpy(aside + at + page, mine, PM_PAGE_SIZE);
			fail(answer, runs[r].addr + page, 1, PM_FAIL_DIFFERS);
		}
	}
	CHECK(mremap(aside, end - start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)start) ==
	      (void *)(uintptr_t)start);
	answer->result.mappings++;
}

static void unmerge(uint64_t start, uint64_t end)
{
	char *aside = mmap(NULL, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(aside != MAP_FAILED);
	memcpy(aside, (char *)(uintptr_t)start, end - start);
	CHECK(mremap(aside, end - start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)start) !=
	      MAP_FAILED);
}

static void carry_out(int sock, const struct pm_header *header, const int *fds)
{
	static struct answer answer;
	const struct pm_range *ranges = (const struct pm_range *)(const void *)(header + 1);
	const struct pm_run *runs = (const struct pm_run *)(const void *)(header + 1);

	if (header->type == PM_HASH) {
		hash(sock, header);
		return;
	}
	memset(&answer, 0, sizeof(answer));
	answer.header = (struct pm_header){.type = PM_RESULT, .seq = header->seq};
	if (header->type == PM_GIVE && !give_runs(runs, header->count, fds)) {
		for (uint32_t i = 0; i < header->count; i++)
			if (!(runs[i].flags & PM_RUN_GAP))
				fail(&answer, runs[i].addr, runs[i].npages, PM_FAIL_SYSTEM);
		send_fds(sock, &answer,
			 sizeof(answer.header) + sizeof(answer.result) + answer.header.count * sizeof(answer.failed[0]), NULL, 0);
		return;
	}
	for (uint32_t i = 0; (header->type == PM_MERGE || header->type == PM_GIVE) && i < header->count;) {
		uint32_t n = 1;

		while (i + n < header->count && runs[i + n].flags & PM_RUN_JOINED)
			n++;
		merge_group(&answer, runs + i, n, fds);
		i += n;
	}
	for (uint32_t i = 0; header->type != PM_MERGE && header->type != PM_GIVE && i < header->count; i++) {
		uint64_t length = ranges[i].end - ranges[i].start;

		if (header->type == PM_ZERO)
			CHECK(madvise((void *)(uintptr_t)ranges[i].start, length, MADV_DONTNEED) == 0);
		else
			unmerge(ranges[i].start, ranges[i].end);
		answer.result.merged += (uint32_t)(length / PM_PAGE_SIZE);
	}
	send_fds(sock, &answer,
		 sizeof(answer.header) + sizeof(answer.result) + answer.header.count * sizeof(answer.failed[0]), NULL, 0);
}

static void fill(char *at, uint64_t number)
{
	uint64_t words[PM_PAGE_SIZE / 8];

	for (size_t i = 0; i < PM_PAGE_SIZE / 8; i++)
		words[i] = number * 0x9e3779b97f4a7c15u;
	memcpy(at, words, sizeof(words));
}

static uint64_t sum(const char *at)
{
	uint64_t words[PM_PAGE_SIZE / 8], sum = 0;

	memcpy(words, at, sizeof(words));
	for (size_t i = 0; i < PM_PAGE_SIZE / 8; i++)
		sum = sum * 31 + words[i];
	return sum;
}

static void greet(int sock)
{
	int fds[4] = {open("/proc/self/pagemap", O_RDONLY), open("/proc/self/maps", O_RDONLY),
		      open("/proc/self/mem", O_RDONLY), tracker()};
	struct command hello = {.type = ADDRESS, .n = fds[3] >= 0, .value = (uintptr_t)memory};

	send_fds(sock, &hello, sizeof(hello), fds, fds[3] >= 0 ? 4 : 3);
}

_Noreturn static void live(int sock)
{
	static char datagram[PM_MESSAGE_MAX] __attribute__((aligned(8)));
	int fds[PM_FDS_MAX];
	size_t nfds;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	greet(sock);
	while (receive_fds(sock, datagram, sizeof(datagram), fds, &nfds) > 0) {
		struct command command;

		memcpy(&command, datagram, sizeof(command));
		if (command.type < FILL) {
			carry_out(sock, (struct pm_header *)(void *)datagram, fds);
		} else {
			char *at = memory + command.page * PM_PAGE_SIZE;

			if (command.type == FILL)
				fill(at, command.value);
			else if (command.type == POKE)
				at[command.value]++;
			else if (command.type == SUM)
				command.value = sum(at);
			else if (command.type == UNMAP)
				munmap(at, command.n * (size_t)PM_PAGE_SIZE);
			else if (command.type == FORK && fork() == 0) {
				close(sock);
				sock = fds[0];
				nfds = 0;
				greet(sock);
				continue;
			}
			send_fds(sock, &command, sizeof(command), NULL, 0);
		}
		while (nfds)
			close(fds[--nfds]);
	}
	_exit(0);
}

/* ---- the test's side ---- */

static uint64_t ask(struct client *client, uint32_t type, uint64_t page, uint32_t n, uint64_t value)
{
	struct command command = {type, n, page, value};

	CHECK(send(client->sock, &command, sizeof(command), 0) == sizeof(command));
	CHECK(recv(client->sock, &command, sizeof(command), 0) == sizeof(command));
	return command.value;
}

static void meet(struct client *client, uint64_t pages)
{
	struct command hello;
	size_t nfds;

	client->fds[3] = -1;
	CHECK(receive_fds(client->sock, &hello, sizeof(hello), client->fds, &nfds) == sizeof(hello));
	client->memory = hello.value;
	client->pages = pages;
}

void client_start(struct client *client, uint64_t pages)
{
	int socks[2];

	client->at_work = false;
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
	client->pid = fork();
	if (client->pid == 0) {
		close(socks[0]);
		memory = mmap(NULL, pages * PM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		CHECK(memory != MAP_FAILED);
		madvise(memory, pages * PM_PAGE_SIZE, MADV_NOHUGEPAGE);
		live(socks[1]);
	}
	close(socks[1]);
	client->sock = socks[0];
	meet(client, pages);
}

void client_fork(struct client *parent, struct client *client)
{
	struct command command = {.type = FORK};
	struct ucred peer;
	socklen_t length = sizeof(peer);
	int socks[2], on = 1;

	client->at_work = false;
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
	CHECK(setsockopt(socks[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0);
	send_fds(parent->sock, &command, sizeof(command), &socks[1], 1);
	CHECK(recv(parent->sock, &command, sizeof(command), 0) == sizeof(command));
	close(socks[1]);
	client->sock = socks[0];
	/* The first message's credentials name the grandchild. */
	{
		char control[CMSG_SPACE(sizeof(peer)) + CMSG_SPACE(4 * sizeof(int))];
		struct command hello;
		struct iovec iov = {&hello, sizeof(hello)};
		struct msghdr message = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};

		memset(control, 0, sizeof(control));
		client->fds[3] = -1;
		CHECK(recvmsg(client->sock, &message, MSG_CMSG_CLOEXEC) == sizeof(hello));
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
			if (c->cmsg_type == SCM_CREDENTIALS)
				memcpy(&peer, CMSG_DATA(c), length);
			else if (c->cmsg_type == SCM_RIGHTS)
				memcpy(client->fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
		}
		client->memory = hello.value;
	}
	client->pid = peer.pid;
	client->pages = parent->pages;
	on = 0;
	CHECK(setsockopt(socks[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0);
}

void client_stop(struct client *client)
{
	kill(client->pid, SIGKILL);
	waitpid(client->pid, NULL, 0); /* fails for a grandchild, which is nobody's to wait for */
	close(client->sock);
	for (int i = 0; i < 4; i++)
		if (client->fds[i] >= 0)
			close(client->fds[i]);
}

void client_fill(struct client *client, uint64_t page, uint64_t number)
{
	ask(client, FILL, page, 0, number);
}

void client_poke(struct client *client, uint64_t page, uint64_t at)
{
	ask(client, POKE, page, 0, at);
}

uint64_t client_sum(struct client *client, uint64_t page)
{
	return ask(client, SUM, page, 0, 0);
}

void client_unmap(struct client *client, uint64_t page, uint64_t n)
{
	ask(client, UNMAP, page, (uint32_t)n, 0);
}

void client_add(struct pm_scanner *scanner, struct client *client, uint64_t number, uint64_t parent, bool tracked)
{
	struct pm_mm_fds fds = {-1, -1, -1, -1};
	struct pm_mm *mm;

	if (tracked)
		fds = (struct pm_mm_fds){client->fds[0], client->fds[1], client->fds[2], client->fds[3]};
	client->number = number;
	CHECK_EQUAL(pm_mm_add(scanner, number, client->pid, &fds, parent), 0);
	mm = pm_mm_find(scanner, number);
	CHECK_EQUAL(pm_mm_mark(mm, client->memory, client->memory + client->pages * PM_PAGE_SIZE, PM_MARK_MERGEABLE), 0);
}

void client_do(struct pm_scanner *scanner, struct client *client, const struct pm_request_out *out)
{
	static char answer[PM_MESSAGE_MAX];
	ssize_t n;

	send_fds(client->sock, out->datagram, out->length, out->fds, out->nfds);
	n = recv(client->sock, answer, sizeof(answer), 0);
	CHECK(n > 0);
	if (((const struct pm_header *)(const void *)answer)->type == PM_RESULT)
		((struct pm_result *)(void *)(answer + sizeof(struct pm_header)))->at_work = client->at_work;
	else
		((struct pm_hashes *)(void *)(answer + sizeof(struct pm_header)))->at_work = client->at_work;
	CHECK_EQUAL(pm_mm_answer(scanner, pm_mm_find(scanner, client->number), answer, (size_t)n), 0);
}

unsigned int client_serve(struct pm_scanner *scanner, struct client *client)
{
	struct pm_mm *mm = pm_mm_find(scanner, client->number);
	struct pm_request_out out;
	unsigned int served = 0;

	while (mm && pm_mm_take(scanner, mm, &out) > 0) {
		client_do(scanner, client, &out);
		served++;
	}
	return served;
}

void pass(struct pm_scanner *scanner, struct client *clients, size_t n)
{
	pm_begin_pass(scanner);
	for (size_t i = 0; i < n; i++) {
		struct pm_mm *mm = pm_mm_find(scanner, clients[i].number);
		bool done = !mm || pm_mm_begin(scanner, mm) <= 0;

		while (!done) {
			uint64_t scanned;

			CHECK_EQUAL(pm_mm_scan(scanner, mm, 700, &scanned, &done), 0);
			CHECK(scanned <= 700);
			client_serve(scanner, &clients[i]);
		}
	}
	for (size_t i = 0; i < 2 * n; i++) /* what one has written to the pool, others are asked to map */
		client_serve(scanner, &clients[i % n]);
	pm_end_pass(scanner);
	for (size_t i = 0; i < n; i++)
		client_serve(scanner, &clients[i]);
}

int64_t counter(const struct pm_scanner *scanner, const char *name)
{
	struct pm_number numbers[PM_NUMBERS_MAX];
	size_t n = pm_counters(scanner, numbers);

	for (size_t i = 0; i < n; i++)
		if (strcmp(numbers[i].name, name) == 0)
			return numbers[i].value;
	CHECK(!"a counter of this name");
	return 0;
}
