/* SPDX-License-Identifier: MIT */
/*
 * Calls that return EINTR after any signal handler, SA_RESTART or not (signal(7)): when it was only our stop that interrupted one, it goes on for
 * the time that is left, and the program notices nothing.  An EINTR that a handler of the program caused is the program's.
 */
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <time.h>

#include <sched.h>

#include "agent.h"
#include "refusal.h"
#include "wraps.h"

/* Repeat a call while it was only our stop that ended it; `again` adjusts its timeout. */
#define REPEAT(result, call, again)                                               \
	for (;;) {                                                                \
		unsigned int stops = pm_freeze_interrupted;                       \
                                                                                  \
		result = (call);                                                  \
		if (result != -1 || errno != EINTR || stops == pm_freeze_interrupted) \
			break;                                                    \
		again;                                                            \
	}

/* A process that shares this memory without being one of its threads: no stop reaches it. */
PM_API int clone(int (*run)(void *), void *stack, int flags, void *argument, ...)
{
	va_list more;
	void *a[3];

	REAL(clone);
	va_start(more, argument);
	for (int i = 0; i < 3; i++)
		a[i] = va_arg(more, void *);
	va_end(more);
	if (flags & CLONE_VM && !(flags & (CLONE_THREAD | CLONE_VFORK)))
		pm_refuse(PM_REFUSE_CLONE, true);
	return real(run, stack, flags, argument, a[0], a[1], a[2]);
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Milliseconds left of a wait; negative (for ever) and 0 stay what they are. */
static int left_ms(int timeout, int64_t end)
{
	int64_t left = end - now_ns(CLOCK_MONOTONIC);

	return timeout <= 0 ? timeout : left <= 0 ? 0 : (int)((left + 999999) / 1000000);
}

static void left_time(struct timespec *left, int64_t end)
{
	int64_t ns = end - now_ns(CLOCK_MONOTONIC);

	ns = ns < 0 ? 0 : ns;
	*left = (struct timespec){ .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
}

static int64_t end_of(const struct timespec *timeout)
{
	return timeout ? now_ns(CLOCK_MONOTONIC) + (int64_t)timeout->tv_sec * 1000000000 + timeout->tv_nsec : 0;
}

PM_API int epoll_pwait(int epfd, struct epoll_event *events, int most, int timeout, const sigset_t *mask)
{
	int64_t end = now_ns(CLOCK_MONOTONIC) + (int64_t)timeout * 1000000;
	int n;

	REAL(epoll_pwait);
	REPEAT(n, real(epfd, events, most, timeout, mask), timeout = left_ms(timeout, end));
	return n;
}

PM_API int epoll_wait(int epfd, struct epoll_event *events, int most, int timeout)
{
	return epoll_pwait(epfd, events, most, timeout, NULL);
}

#if __GLIBC_PREREQ(2, 35)
PM_API int epoll_pwait2(int epfd, struct epoll_event *events, int most, const struct timespec *timeout, const sigset_t *mask)
{
	int64_t end = end_of(timeout);
	struct timespec left;
	int n;

	REAL(epoll_pwait2);
	REPEAT(n, real(epfd, events, most, timeout, mask), if (timeout) { left_time(&left, end); timeout = &left; });
	return n;
}
#endif

PM_API int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int64_t end = now_ns(CLOCK_MONOTONIC) + (int64_t)timeout * 1000000;
	int n;

	REAL(poll);
	REPEAT(n, real(fds, count, timeout), timeout = left_ms(timeout, end));
	return n;
}

PM_API int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	int64_t end = end_of(timeout);
	struct timespec left;
	int n;

	REAL(ppoll);
	REPEAT(n, real(fds, count, timeout, mask), if (timeout) { left_time(&left, end); timeout = &left; });
	return n;
}

PM_API int pselect(int count, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask)
{
	int64_t end = end_of(timeout);
	struct timespec left;
	int n;

	REAL(pselect); /* the sets are untouched when it fails */
	REPEAT(n, real(count, in, out, except, timeout, mask), if (timeout) { left_time(&left, end); timeout = &left; });
	return n;
}

PM_API int select(int count, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout)
{
	int n;

	REAL(select); /* Linux leaves the time that is left in *timeout */
	REPEAT(n, real(count, in, out, except, timeout), (void)0);
	return n;
}

PM_API int nanosleep(const struct timespec *wanted, struct timespec *left)
{
	struct timespec next;
	int result;

	REAL(nanosleep);
	if (wanted)
		next = *wanted;
	REPEAT(result, real(wanted ? &next : NULL, &next), (void)0);
	if (result && errno == EINTR && left)
		*left = next;
	return result;
}

PM_API int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left)
{
	struct timespec next = *wanted;
	int error;

	REAL(clock_nanosleep);
	for (;;) {
		unsigned int stops = pm_freeze_interrupted;

		error = real(clock, flags, &next, flags & TIMER_ABSTIME ? NULL : &next);
		if (error != EINTR || stops == pm_freeze_interrupted)
			break;
	}
	if (error == EINTR && left && !(flags & TIMER_ABSTIME))
		*left = next;
	return error;
}

PM_API int usleep(useconds_t wanted)
{
	return nanosleep(&(struct timespec){ .tv_sec = wanted / 1000000, .tv_nsec = wanted % 1000000 * 1000 }, NULL);
}

PM_API unsigned int sleep(unsigned int wanted)
{
	struct timespec left = { 0, 0 };

	if (nanosleep(&(struct timespec){ .tv_sec = wanted }, &left) == 0)
		return 0;
	return (unsigned int)left.tv_sec + (left.tv_nsec >= 500000000);
}

PM_API int pause(void)
{
	int result;

	REAL(pause);
	REPEAT(result, real(), (void)0);
	return result;
}

PM_API int sigsuspend(const sigset_t *mask)
{
	int result;

	REAL(sigsuspend);
	REPEAT(result, real(mask), (void)0);
	return result;
}

PM_API int sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
	int result;

	REAL(sigwaitinfo);
	REPEAT(result, real(set, info), (void)0);
	return result;
}

PM_API int sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout)
{
	int64_t end = end_of(timeout);
	struct timespec left;
	int result;

	REAL(sigtimedwait);
	REPEAT(result, real(set, info, timeout), if (timeout) { left_time(&left, end); timeout = &left; });
	return result;
}

PM_API int sem_timedwait(sem_t *semaphore, const struct timespec *until)
{
	int result;

	REAL(sem_timedwait);
	REPEAT(result, real(semaphore, until), (void)0);
	return result;
}

PM_API int sem_clockwait(sem_t *semaphore, clockid_t clock, const struct timespec *until)
{
	int result;

	REAL(sem_clockwait);
	REPEAT(result, real(semaphore, clock, until), (void)0);
	return result;
}

PM_API ssize_t msgrcv(int queue, void *message, size_t size, long type, int flags)
{
	ssize_t n;

	REAL(msgrcv);
	REPEAT(n, real(queue, message, size, type, flags), (void)0);
	return n;
}

PM_API int msgsnd(int queue, const void *message, size_t size, int flags)
{
	int result;

	REAL(msgsnd);
	REPEAT(result, real(queue, message, size, flags), (void)0);
	return result;
}

PM_API int semop(int set, struct sembuf *operations, size_t count)
{
	int result;

	REAL(semop);
	REPEAT(result, real(set, operations, count), (void)0);
	return result;
}

PM_API int semtimedop(int set, struct sembuf *operations, size_t count, const struct timespec *timeout)
{
	int64_t end = end_of(timeout);
	struct timespec left;
	int result;

	REAL(semtimedop);
	REPEAT(result, real(set, operations, count, timeout), if (timeout) { left_time(&left, end); timeout = &left; });
	return result;
}

/*
 * Sockets with a time limit (SO_RCVTIMEO, SO_SNDTIMEO); those without one restart by themselves.  What is left of the limit is waited for by
 * poll(2): false when it is over.
 */
static bool wait_on(int fd, short events, int64_t start)
{
	struct pollfd one = { .fd = fd, .events = events };
	struct timeval limit = { 0, 0 };
	socklen_t size = sizeof(limit);
	int64_t ns;

	if (getsockopt(fd, SOL_SOCKET, events == POLLIN ? SO_RCVTIMEO : SO_SNDTIMEO, &limit, &size))
		return true;
	ns = (int64_t)limit.tv_sec * 1000000000 + limit.tv_usec * 1000;
	if (ns == 0 || poll(&one, 1, left_ms(1, start + ns)) != 0)
		return true;
	errno = EAGAIN;
	return false;
}

#define ON_SOCKET(fd, events) \
	if (!wait_on(fd, events, start)) \
		break
PM_API ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	REAL(recv);
	REPEAT(n, real(fd, buffer, length, flags), ON_SOCKET(fd, POLLIN));
	return n;
}

PM_API ssize_t recvfrom(int fd, void *buffer, size_t length, int flags, __SOCKADDR_ARG from, socklen_t *size)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	REAL(recvfrom);
	REPEAT(n, real(fd, buffer, length, flags, from, size), ON_SOCKET(fd, POLLIN));
	return n;
}

PM_API ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	REAL(recvmsg);
	REPEAT(n, real(fd, message, flags), ON_SOCKET(fd, POLLIN));
	if (n >= 0 && message->msg_controllen)
		pm_opens_received();
	return n;
}

PM_API ssize_t send(int fd, const void *buffer, size_t length, int flags)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	REAL(send);
	REPEAT(n, real(fd, buffer, length, flags), ON_SOCKET(fd, POLLOUT));
	return n;
}

PM_API int accept(int fd, __SOCKADDR_ARG from, socklen_t *size)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	int result;

	REAL(accept);
	REPEAT(result, real(fd, from, size), ON_SOCKET(fd, POLLIN));
	return result;
}

PM_API ssize_t sendto(int fd, const void *buffer, size_t length, int flags, __CONST_SOCKADDR_ARG to, socklen_t size)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	REAL(sendto);
	REPEAT(n, real(fd, buffer, length, flags, to, size), ON_SOCKET(fd, POLLOUT));
	return n;
}

PM_API ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	ssize_t n;

	REAL(sendmsg);
	REPEAT(n, real(fd, message, flags), ON_SOCKET(fd, POLLOUT));
	return n;
}

PM_API int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	int n;

	REAL(sendmmsg);
	REPEAT(n, real(fd, messages, count, flags), ON_SOCKET(fd, POLLOUT));
	return n;
}

PM_API int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	int n;

	REAL(recvmmsg);
	REPEAT(n, real(fd, messages, count, flags, timeout), ON_SOCKET(fd, POLLIN));
	if (n > 0)
		pm_opens_received();
	return n;
}

PM_API int accept4(int fd, __SOCKADDR_ARG from, socklen_t *size, int flags)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	int result;

	REAL(accept4);
	REPEAT(result, real(fd, from, size, flags), ON_SOCKET(fd, POLLIN));
	return result;
}

/* With a time limit, a connection goes on being made after EINTR, and can't be asked for again: its outcome is waited for. */
PM_API int connect(int fd, __CONST_SOCKADDR_ARG to, socklen_t size)
{
	int64_t start = now_ns(CLOCK_MONOTONIC);
	unsigned int stops = pm_freeze_interrupted;
	int result, error = 0;
	socklen_t length = sizeof(error);

	REAL(connect);
	result = real(fd, to, size);
	if (result != -1 || errno != EINTR || stops == pm_freeze_interrupted)
		return result;
	if (!wait_on(fd, POLLOUT, start)) {
		errno = EINPROGRESS;
		return -1;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) || !error)
		return 0;
	errno = error;
	return -1;
}
