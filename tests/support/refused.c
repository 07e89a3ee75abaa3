/* SPDX-License-Identifier: MIT */
/*
 * refused WHAT PAGES: a program with memory marked as mergeable, alike in all that are started with so many pages, that does what keeps it from being merged when it is
 * told "begin", and undoes it at "end".  WHAT: io_uring, aio, userfaultfd, mlockall, clone-vm, process_vm, direct, nothing.  It answers each line, with "can't" where the
 * kernel does not let it.
 */
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, MERGEABLE = 12 };

static unsigned char *memory;
static size_t pages;
static int fd = -1;
static aio_context_t context;
static pid_t other;
static char other_stack[65536] __attribute__((aligned(64)));
static int pipe_fds[2];

static int wait_for_end(void *unused)
{
	char byte;

	(void)unused;
	syscall(SYS_close, pipe_fds[1]);
	return (int)syscall(SYS_read, pipe_fds[0], &byte, 1);
}

static int begin(const char *what)
{
	if (strcmp(what, "io_uring") == 0) {
		unsigned char parameters[120] = { 0 };
		struct iovec buffer = { memory, PAGE };

		fd = (int)syscall(SYS_io_uring_setup, 4u, parameters);
		return fd < 0 || syscall(SYS_io_uring_register, fd, 0 /* BUFFERS */, &buffer, 1u);
	}
	if (strcmp(what, "aio") == 0)
		return (int)syscall(SYS_io_setup, 4, &context);
	if (strcmp(what, "userfaultfd") == 0)
		return (fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* USER_MODE_ONLY */)) < 0;
	if (strcmp(what, "mlockall") == 0)
		return mlockall(MCL_CURRENT);
	if (strcmp(what, "clone-vm") == 0) {
		if (pipe(pipe_fds))
			return -1;
		other = clone(wait_for_end, other_stack + sizeof(other_stack), CLONE_VM | SIGCHLD, NULL);
		return other < 0;
	}
	if (strcmp(what, "process_vm") == 0) { /* to a child, that ends without having looked */
		struct iovec here = { other_stack, sizeof(other_stack) };
		char byte;
		long n;

		if (pipe(pipe_fds))
			return -1;
		other = fork();
		if (other == 0)
			_exit(close(pipe_fds[1]) || read(pipe_fds[0], &byte, 1));
		n = process_vm_writev(other, &here, 1, &here, 1, 0);
		close(pipe_fds[1]);
		return waitpid(other, NULL, 0) != other || n != (long)sizeof(other_stack);
	}
	if (strcmp(what, "direct") == 0)
		return (fd = open("/proc/self/exe", O_RDONLY | O_DIRECT)) < 0;
	return 0;
}

static int end(const char *what)
{
	if (strcmp(what, "aio") == 0)
		return (int)syscall(SYS_io_destroy, context);
	if (strcmp(what, "mlockall") == 0)
		return munlockall();
	if (strcmp(what, "clone-vm") == 0) {
		close(pipe_fds[1]);
		return waitpid(other, NULL, 0) != other;
	}
	return fd >= 0 ? close(fd) : 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "nothing";
	char line[32];

	pages = argc > 2 ? (size_t)atol(argv[2]) : 256;
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	srand(1);
	for (size_t i = 0; i < pages * PAGE; i++)
		memory[i] = (unsigned char)rand();
	madvise(memory, pages * PAGE, MERGEABLE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "begin", 5) == 0)
			printf("%s\n", begin(what) ? "can't" : "done");
		else if (strncmp(line, "end", 3) == 0)
			printf("%s\n", end(what) ? "can't" : "done");
	}
	return 0;
}
