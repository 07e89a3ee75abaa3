/* SPDX-License-Identifier: MIT */
/*
 * Programs into which it is hard to inject a call.  odd KIND
 * Each says "ready", then answers each line that it reads with one; what it should never see, it tells and ends.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static atomic_int handled;

static void die(const char *what)
{
	perror(what);
	printf("%s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(3);
}

/* Nothing of stdio: some may make only two calls. */
static void say(const char *text)
{
	if (write(1, text, strlen(text)) < 0)
		_exit(4);
}

static void echo(void)
{
	char text[256];
	ssize_t n;

	say("ready\n");
	while ((n = read(0, text, sizeof(text))) > 0)
		say("ok\n");
	if (n < 0)
		say("read failed\n");
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void count(int number)
{
	(void)number;
	handled++;
}

static void handle(int number, int flags)
{
	struct sigaction action = {.sa_handler = count, .sa_flags = flags};

	sigaction(number, &action, NULL);
}

/* Waits without a limit that end with EINTR for no other reason than a stop. */
static void epoll_kind(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int fd = epoll_create1(0);
	char text[256];

	epoll_ctl(fd, EPOLL_CTL_ADD, 0, &event);
	say("ready\n");
	for (;;) {
		if (epoll_wait(fd, &event, 1, -1) != 1)
			die("epoll_wait");
		if (read(0, text, sizeof(text)) <= 0)
			return;
		say("ok\n");
	}
}

static int semaphore;

static void *semop_thread(void *unused)
{
	char text[256];

	(void)unused;
	while (read(0, text, sizeof(text)) > 0)
		semop(semaphore, &(struct sembuf){.sem_op = 1}, 1);
	semctl(semaphore, 0, IPC_RMID);
	_exit(0);
}

static void semop_kind(void)
{
	sigset_t all;
	pthread_t thread;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	semaphore = semget(IPC_PRIVATE, 1, 0600);
	pthread_create(&thread, NULL, semop_thread, NULL);
	say("ready\n");
	while (!semop(semaphore, &(struct sembuf){.sem_op = -1}, 1))
		say("ok\n");
	if (errno != EIDRM)
		die("semop");
	pause();
}

static void sigwait_kind(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	say("ready\n");
	for (;;) {
		if (syscall(SYS_rt_sigtimedwait, &set, NULL, NULL, 8) != SIGUSR1)
			die("rt_sigtimedwait");
		say("ok\n");
	}
}

/* Must come back for each signal, although its own call is restarted after each stop. */
static void suspend_kind(void)
{
	sigset_t set, none;

	sigemptyset(&none);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	handle(SIGUSR1, SA_RESTART);
	say("ready\n");
	for (int seen = 0;;) {
		if (sigsuspend(&none) != -1 || errno != EINTR)
			die("sigsuspend");
		if (handled == seen)
			die("sigsuspend came back without a signal");
		seen = handled;
		say("ok\n");
	}
}

static void strict_kind(void)
{
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
		die("seccomp");
	echo();
	syscall(SYS_exit, 0);
}

/* Killed for the calls that are injected, and for the one by which the kernel goes on with a sleep. */
static void filter_kind(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
	char text[64];

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("seccomp");
	say("ready\n");
	for (;;) {
		long begin = now_ms();

		if (syscall(SYS_nanosleep, &(struct timespec){.tv_nsec = 400000000}, NULL))
			die("nanosleep");
		if (now_ms() - begin < 399)
			die("nanosleep was short");
		if (read(0, text, sizeof(text)) <= 0)
			return;
		say("ok\n");
	}
}

static void *echo_thread(void *unused)
{
	(void)unused;
	echo();
	_exit(0);
}

static void leader_kind(void)
{
	pthread_t thread;

	pthread_create(&thread, NULL, echo_thread, NULL);
	pthread_exit(NULL);
}

static void *short_thread(void *unused)
{
	(void)unused;
	return NULL;
}

static void *maker_thread(void *unused)
{
	pthread_t thread;

	for (;;) {
		if (pthread_create(&thread, NULL, short_thread, NULL) == 0)
			pthread_join(thread, NULL);
	}
	return unused;
}

static void threads_kind(void)
{
	pthread_t thread;

	for (int i = 0; i < 4; i++)
		pthread_create(&thread, NULL, maker_thread, NULL);
	pthread_create(&thread, NULL, echo_thread, NULL);
	pthread_exit(NULL);
}

static void *exec_thread(void *program)
{
	nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	execl("/proc/self/exe", program, "exec", "again", NULL);
	die("exec");
	return NULL;
}

/* Another program every few milliseconds, by a thread that is not the first; ends when stdin does. */
static void exec_kind(const char *program, int again)
{
	static char name[256];
	pthread_t thread;
	char byte;

	strncpy(name, program, sizeof(name) - 1);
	if (!again)
		say("ready\n");
	pthread_create(&thread, NULL, exec_thread, name);
	if (read(0, &byte, 1) >= 0)
		_exit(0);
}

/* The parent can't be interrupted until its child ends. */
static void vfork_kind(void)
{
	int status;
	pid_t pid;

	pid = vfork();
	if (pid == 0) {
		char text[16];

		say("ready\n");
		if (read(0, text, sizeof(text)) < 0)
			_exit(1);
		_exit(7);
	}
	waitpid(pid, &status, 0);
	say(WEXITSTATUS(status) == 7 ? "ok\n" : "bad\n");
}

/* In a handler, on a stack of its own, with another signal that waits until the handler has ended. */
static void answer_on_other_stack(int number)
{
	stack_t stack;

	(void)number;
	sigaltstack(NULL, &stack);
	raise(SIGUSR2); /* blocked, pending */
	echo();
	_exit(stack.ss_flags == SS_ONSTACK && handled == 0 ? 0 : 5);
}

static void altstack_kind(void)
{
	stack_t stack = {.ss_sp = malloc(SIGSTKSZ), .ss_size = SIGSTKSZ};
	struct sigaction action = {.sa_handler = answer_on_other_stack, .sa_flags = SA_ONSTACK};

	sigfillset(&action.sa_mask);
	handle(SIGUSR2, 0);
	sigaltstack(&stack, NULL);
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
}

static volatile char selector = 1; /* SYSCALL_DISPATCH_FILTER_BLOCK */

/* Calls from above its own text, such as from the vDSO, become signals: as in Wine. */
static void dispatch_kind(void)
{
	handle(SIGSYS, 0);
	if (prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0x1000, getauxval(AT_SYSINFO_EHDR) - 0x1000, &selector))
		die("dispatch");
	say("ready\n");
	for (char text[64]; read(0, text, sizeof(text)) > 0;)
		say(handled ? "SIGSYS\n" : "ok\n");
	selector = 0;
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";

	if (strcmp(kind, "epoll") == 0)
		epoll_kind();
	else if (strcmp(kind, "semop") == 0)
		semop_kind();
	else if (strcmp(kind, "sigwait") == 0)
		sigwait_kind();
	else if (strcmp(kind, "suspend") == 0)
		suspend_kind();
	else if (strcmp(kind, "strict") == 0)
		strict_kind();
	else if (strcmp(kind, "filter") == 0)
		filter_kind();
	else if (strcmp(kind, "leader") == 0)
		leader_kind();
	else if (strcmp(kind, "threads") == 0)
		threads_kind();
	else if (strcmp(kind, "exec") == 0)
		exec_kind(argv[0], argc > 2);
	else if (strcmp(kind, "vfork") == 0)
		vfork_kind();
	else if (strcmp(kind, "altstack") == 0)
		altstack_kind();
	else if (strcmp(kind, "dispatch") == 0)
		dispatch_kind();
	else
		return 2;
	return 0;
}
