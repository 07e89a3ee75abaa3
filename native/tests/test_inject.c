/* SPDX-License-Identifier: MIT */
/*
 * Calls injected into programs that compute, sleep, wait for signals and read: each call is made, and none of the programs
 * notices.  What is injected is getpid(2), whose answer tells who made it.
 */
#include "check.h"
#include "inject.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 100, SLEEP_MS = 1500 };

static int to_parent[2], from_parent[2];

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void say(char byte)
{
	CHECK(write(to_parent[1], &byte, 1) == 1);
}

/* What the program says within a minute. */
static char hear(void)
{
	struct pollfd fd = {.fd = to_parent[0], .events = POLLIN};
	char byte = 0;

	CHECK(poll(&fd, 1, 60000) == 1);
	CHECK(read(to_parent[0], &byte, 1) == 1);
	return byte;
}

static void end_sleep(long begin, int result)
{
	_exit(result == 0 && now_ms() - begin >= SLEEP_MS ? 0 : 1);
}

static void sleep_once(void)
{
	long begin = now_ms();

	say('r');
	end_sleep(begin, nanosleep(&(struct timespec){SLEEP_MS / 1000, SLEEP_MS % 1000 * 1000000}, NULL));
}

static void poll_once(void)
{
	long begin = now_ms();

	say('r');
	end_sleep(begin, ppoll(NULL, 0, &(struct timespec){SLEEP_MS / 1000, SLEEP_MS % 1000 * 1000000}, NULL));
}

static void read_once(void)
{
	char byte;

	say('r');
	_exit(read(from_parent[0], &byte, 1) == 1 ? 0 : 1);
}

static volatile sig_atomic_t handled;

static void count(int number)
{
	(void)number;
	handled++;
}

/* A signal that comes while a call is injected must end the call that waits for it. */
static void suspend(void)
{
	sigset_t set, none;

	sigemptyset(&none);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGUSR1, count);
	say('r');
	for (;;) {
		sigsuspend(&none);
		say('s');
	}
}

/* Registers and memory: a sum that comes out the same each time. */
static void compute(void)
{
	volatile uint64_t wanted = 0; /* or the compiler takes it that the loop ends */

	say('r');
	for (volatile int turn = 0;; turn++) {
		uint64_t sum = 1;
		double real = 1;

		for (uint64_t i = 1; i < 20000; i++) {
			sum = sum * 6364136223846793005u + i;
			real = real * 1.0000001 + (double)i;
		}
		sum ^= (uint64_t)real;
		if (turn == 0)
			wanted = sum;
		if (sum != wanted)
			_exit(1);
	}
}

#ifdef __aarch64__
/* The vector registers beyond 128 bits, and the predicates, which any system call of the program's own would clear. */
static void compute_vectors(void)
{
	bool whole = true;

	say('r');
	while (whole) {
		uint64_t bad;

		__asm__ volatile(".arch_extension sve\n"
				 "ptrue p0.b\n ptrue p1.b\n index z0.b, #1, #1\n"
				 "mov x9, #0x30000\n 1: subs x9, x9, #1\n b.ne 1b\n"
				 "index z1.b, #1, #1\n cmpne p2.b, p1/z, z0.b, z1.b\n cntp %0, p1, p2.b\n"
				 "ptrue p3.b\n eor p3.b, p3/z, p0.b, p1.b\n cntp x10, p1, p3.b\n add %0, %0, x10\n"
				 : "=r"(bad)
				 :
				 : "x9", "x10", "v0", "v1", "cc", "memory");
		whole = bad == 0;
	}
	_exit(1);
}
#endif

static void inject_getpid(pid_t pid)
{
	struct pm_call calls[2] = {{.number = SYS_getpid}, {.number = SYS_prctl, .args = {UINT32_MAX}}};
	uint64_t stopped;

	CHECK_EQUAL(pm_inject(pid, calls, 2, &stopped), 0);
	CHECK_EQUAL(calls[0].result, pid);
	CHECK_EQUAL(calls[1].result, -EINVAL);
	CHECK(stopped > 0);
}

static pid_t start(void (*program)(void))
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		program();
		_exit(0);
	}
	CHECK_EQUAL(hear(), 'r');
	return pid;
}

static void end_well(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK_EQUAL(status, 0);
}

static void kill_alive(pid_t pid)
{
	int status;

	CHECK_EQUAL(waitpid(pid, &status, WNOHANG), 0);
	kill(pid, SIGKILL);
	CHECK(waitpid(pid, &status, 0) == pid);
}

static void test_sleeps(void)
{
	void (*programs[])(void) = {sleep_once, poll_once};

	for (size_t i = 0; i < 2; i++) {
		pid_t pid = start(programs[i]);
		long begin = now_ms();
		int turns = 0;

		while (now_ms() - begin < SLEEP_MS / 2) {
			inject_getpid(pid);
			turns++;
		}
		CHECK(turns > 0);
		end_well(pid);
	}
}

static void test_read(void)
{
	pid_t pid = start(read_once);

	for (int i = 0; i < ROUNDS; i++)
		inject_getpid(pid);
	CHECK(write(from_parent[1], "x", 1) == 1);
	end_well(pid);
}

static void test_signals(void)
{
	pid_t pid = start(suspend);

	for (int i = 0; i < ROUNDS; i++) {
		if (i % 2)
			inject_getpid(pid);
		kill(pid, SIGUSR1);
		inject_getpid(pid);
		CHECK_EQUAL(hear(), 's');
	}
	kill_alive(pid);
}

static void test_computing(void (*program)(void))
{
	pid_t pid = start(program);

	for (int i = 0; i < ROUNDS; i++)
		inject_getpid(pid);
	kill_alive(pid);
}

static void test_stopped(void)
{
	pid_t pid = start(read_once);
	int status;

	kill(pid, SIGSTOP);
	CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	for (int i = 0; i < ROUNDS; i++)
		inject_getpid(pid);
	CHECK_EQUAL(waitpid(pid, &status, WNOHANG | WUNTRACED | WCONTINUED), 0);
	kill(pid, SIGCONT);
	CHECK(write(from_parent[1], "x", 1) == 1);
	end_well(pid);
}

static void test_gone(void)
{
	struct pm_call call = {.number = SYS_getpid};
	pid_t pid = fork();
	uint64_t stopped;

	if (pid == 0)
		_exit(0);
	end_well(pid);
	CHECK_EQUAL(pm_inject(pid, &call, 1, &stopped), -ESRCH);
}

int main(void)
{
	CHECK(pipe(to_parent) == 0 && pipe(from_parent) == 0);
	test_sleeps();
	test_read();
	test_signals();
	test_computing(compute);
#ifdef __aarch64__
	if (getauxval(AT_HWCAP) & 1 << 22) { /* HWCAP_SVE */
		test_computing(compute_vectors);
		puts("vectors: checked");
	}
#endif
	test_stopped();
	test_gone();
	return 0;
}
