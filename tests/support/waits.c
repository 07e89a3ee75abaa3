/* SPDX-License-Identifier: MIT */
/*
 * Threads that sleep in the calls of signal(7)'s list, while somebody stops them again and again: none may see EINTR, or
 * wake early; a signal of the program's own must still be seen.  waits SECONDS
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_MS = 150 };

static atomic_int bad, turns;
static atomic_bool stop;

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int wait_epoll(void)
{
	struct epoll_event event;
	static _Thread_local int fd;

	fd = fd ? fd : epoll_create1(0);
	return epoll_wait(fd, &event, 1, WAIT_MS);
}

static int wait_poll(void)
{
	return poll(NULL, 0, WAIT_MS);
}

static int wait_ppoll(void)
{
	return ppoll(NULL, 0, &(struct timespec){ .tv_nsec = WAIT_MS * 1000000 }, NULL);
}

static int wait_select(void)
{
	return select(0, NULL, NULL, NULL, &(struct timeval){ .tv_usec = WAIT_MS * 1000 });
}

static int wait_nanosleep(void)
{
	return nanosleep(&(struct timespec){ .tv_nsec = WAIT_MS * 1000000 }, NULL);
}

static int wait_clock(void)
{
	return clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){ .tv_nsec = WAIT_MS * 1000000 }, NULL);
}

static int wait_semaphore(void)
{
	static sem_t semaphore;
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += WAIT_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return sem_timedwait(&semaphore, &until) == -1 && errno == ETIMEDOUT ? 0 : -1;
}

static int wait_recv(void)
{
	static _Thread_local int pair[2];
	char byte;

	if (!pair[0]) {
		socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
		setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ .tv_usec = WAIT_MS * 1000 },
			   sizeof(struct timeval));
	}
	return recv(pair[0], &byte, 1, 0) == -1 && errno == EAGAIN ? 0 : -1;
}

static int wait_signal(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return sigtimedwait(&set, NULL, &(struct timespec){ .tv_nsec = WAIT_MS * 1000000 }) == -1 && errno == EAGAIN ? 0 : -1;
}

static const struct {
	const char *name;
	int (*wait)(void);
} waits[] = {
	{ "epoll_wait", wait_epoll }, { "poll", wait_poll }, { "ppoll", wait_ppoll }, { "select", wait_select },
	{ "nanosleep", wait_nanosleep }, { "clock_nanosleep", wait_clock }, { "sem_timedwait", wait_semaphore },
	{ "recv", wait_recv }, { "sigtimedwait", wait_signal },
};

static void *waiter(void *argument)
{
	size_t i = (size_t)argument;

	while (!atomic_load(&stop)) {
		long start = now_ms();
		int result = waits[i].wait();

		if (result != 0 || now_ms() - start < WAIT_MS - 2) {
			fprintf(stderr, "waits: %s gave %d (%s) after %ld ms\n", waits[i].name, result, strerror(errno),
				now_ms() - start);
			atomic_fetch_add(&bad, 1);
		}
		atomic_fetch_add(&turns, 1);
	}
	return NULL;
}

static void alarmed(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	enum { N = sizeof(waits) / sizeof(*waits), SIZE = 64 * 4096 };
	pthread_t threads[N];
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct sigaction action = { .sa_handler = alarmed, .sa_flags = SA_RESTART };
	long end = now_ms() + (argc > 1 ? (long)(atof(argv[1]) * 1000) : 2000);
	sigset_t alarm_set;

	memset(memory, 7, SIZE);
	madvise(memory, SIZE, 12);
	sigaction(SIGALRM, &action, NULL);
	sigemptyset(&alarm_set);
	sigaddset(&alarm_set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm_set, NULL);
	for (size_t i = 0; i < N; i++)
		pthread_create(&threads[i], NULL, waiter, (void *)i);
	printf("ready\n");
	fflush(stdout);
	sigset_t none;
	sigemptyset(&none);
	/* The program's own signal ends a wait, as ever.  It is open to it only in the wait: elsewhere it could arrive just before the call. */
	while (now_ms() < end) {
		long start = now_ms();

		setitimer(ITIMER_REAL, &(struct itimerval){ .it_value.tv_usec = 50000 }, NULL);
		if (ppoll(NULL, 0, &(struct timespec){ .tv_sec = 5 }, &none) != -1 || errno != EINTR || now_ms() - start > 2000) {
			fprintf(stderr, "waits: the program's own alarm was swallowed\n");
			atomic_fetch_add(&bad, 1);
		}
	}
	atomic_store(&stop, 1);
	for (size_t i = 0; i < N; i++)
		pthread_join(threads[i], NULL);
	printf("turns %d\n", turns);
	return bad ? 1 : 0;
}
