/* SPDX-License-Identifier: MIT */
/*
 * Calls by which pages come to be written without a fault: files are opened for O_DIRECT, files and devices that hold pages while a call lasts, and the process writes to
 * itself, or others, by process_vm_writev(2).  What is open already the agent finds in /proc; this is for what comes about while a request is carried out.
 */
#undef _FILE_OFFSET_BITS /* open and open64 are both defined here, each under its own name */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "lock.h"
#include "refusal.h"
#include "wraps.h"

static _Atomic uint32_t direct, writes;

uint32_t pm_opens_direct(void)
{
	return atomic_load(&direct);
}

bool pm_writes_under_way(void)
{
	return atomic_load(&writes) != 0;
}

void pm_opens_received(void)
{
	if (!pm_agent_is_me())
		atomic_fetch_add(&direct, 1);
}

/* Before the call: by the time that a page can be taken hold of, the agent knows. */
static void note(const char *path, int flags)
{
	if (flags & O_DIRECT || (path && strncmp(path, "/dev/", 5) == 0 && !pm_refusal_harmless(path)))
		pm_opens_received();
}

static atomic_bool watching;

void pm_opens_watch(bool on)
{
	atomic_store(&watching, on);
}

/* And after it, of what may hold pages though it is not opened for O_DIRECT: nothing has been read from it yet. */
static int opened(int fd)
{
	int error = errno;

	if (fd >= 0 && atomic_load(&watching) && !pm_agent_is_me() && !pm_file_copies(fd))
		pm_opens_received();
	errno = error;
	return fd;
}

static mode_t take_mode(int flags, va_list more)
{
	return flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? va_arg(more, mode_t) : 0;
}

/*
 * libc's functions, looked up once at the start: these are called in places where dlsym(3) would not do (a malloc that opens files when it is first called).  Before that
 * the call itself serves.
 */
static struct {
	int (*open)(const char *, int, ...), (*open64)(const char *, int, ...);
	int (*openat)(int, const char *, int, ...), (*openat64)(int, const char *, int, ...);
	int (*fcntl)(int, int, ...), (*fcntl64)(int, int, ...);
} libc;

__attribute__((constructor)) static void find_all(void)
{
	*(void **)&libc.open = pm_find_real("open");
	*(void **)&libc.open64 = pm_find_real("open64");
	*(void **)&libc.openat = pm_find_real("openat");
	*(void **)&libc.openat64 = pm_find_real("openat64");
	*(void **)&libc.fcntl = pm_find_real("fcntl");
	*(void **)&libc.fcntl64 = pm_find_real("fcntl64");
}

#define MODE_OF(mode, last)                     \
	va_list more;                           \
	mode_t mode;                            \
	va_start(more, last);                   \
	mode = take_mode(flags, more);          \
	va_end(more);                           \
	note(path, flags)

static int open_it(int (*function)(const char *, int, ...), const char *path, int flags, mode_t mode)
{
	return opened(function ? function(path, flags, mode) : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

static int open_it_at(int (*function)(int, const char *, int, ...), int dir, const char *path, int flags, mode_t mode)
{
	return opened(function ? function(dir, path, flags, mode) : (int)syscall(SYS_openat, dir, path, flags, mode));
}

PM_API int open(const char *path, int flags, ...)
{
	MODE_OF(mode, flags);
	return open_it(libc.open, path, flags, mode);
}

PM_API int open64(const char *path, int flags, ...)
{
	MODE_OF(mode, flags);
	return open_it(libc.open64, path, flags, mode);
}

PM_API int openat(int dir, const char *path, int flags, ...)
{
	MODE_OF(mode, flags);
	return open_it_at(libc.openat, dir, path, flags, mode);
}

PM_API int openat64(int dir, const char *path, int flags, ...)
{
	MODE_OF(mode, flags);
	return open_it_at(libc.openat64, dir, path, flags, mode);
}

/* What programs call that were compiled with _FORTIFY_SOURCE. */
PM_API int __open_2(const char *path, int flags)
{
	note(path, flags);
	return open_it(libc.open, path, flags, 0);
}

PM_API int __open64_2(const char *path, int flags)
{
	note(path, flags);
	return open_it(libc.open64, path, flags, 0);
}

PM_API int __openat_2(int dir, const char *path, int flags)
{
	note(path, flags);
	return open_it_at(libc.openat, dir, path, flags, 0);
}

PM_API int __openat64_2(int dir, const char *path, int flags)
{
	note(path, flags);
	return open_it_at(libc.openat64, dir, path, flags, 0);
}

PM_API FILE *fopen(const char *path, const char *how)
{
	REAL(fopen);
	FILE *file = real(path, how);

	if (file)
		opened(fileno(file));
	return file;
}

PM_API FILE *fopen64(const char *path, const char *how)
{
	REAL(fopen64);
	FILE *file = real(path, how);

	if (file)
		opened(fileno(file));
	return file;
}

static int control(int (*function)(int, int, ...), int fd, int command, va_list more)
{
	void *argument = va_arg(more, void *);

	if (command == F_SETFL && (uintptr_t)argument & O_DIRECT)
		pm_opens_received();
	return function ? function(fd, command, argument) : (int)syscall(SYS_fcntl, fd, command, argument);
}

PM_API int fcntl(int fd, int command, ...)
{
	va_list more;

	va_start(more, command);
	int result = control(libc.fcntl, fd, command, more);
	va_end(more);
	return result;
}

PM_API int fcntl64(int fd, int command, ...)
{
	va_list more;

	va_start(more, command);
	int result = control(libc.fcntl64, fd, command, more);
	va_end(more);
	return result;
}

/* Programs that exchange memory by these calls do so on both sides: others may read ours at any time. */
static _Atomic bool exchanges;

bool pm_opens_exchanges(void)
{
	return atomic_load_explicit(&exchanges, memory_order_relaxed);
}

PM_API ssize_t process_vm_readv(pid_t pid, const struct iovec *to, unsigned long nto, const struct iovec *from, unsigned long nfrom,
				unsigned long flags)
{
	atomic_store_explicit(&exchanges, true, memory_order_relaxed);
	return syscall(SYS_process_vm_readv, pid, to, nto, from, nfrom, flags);
}

/* The kernel finds the pages writable first, and writes to them then. */
PM_API ssize_t process_vm_writev(pid_t pid, const struct iovec *from, unsigned long nfrom, const struct iovec *to, unsigned long nto,
				 unsigned long flags)
{
	ssize_t n;

	REAL(process_vm_writev);
	atomic_store_explicit(&exchanges, true, memory_order_relaxed);
	if (pid != getpid()) {
		pm_refuse(PM_REFUSE_EXCHANGE, true);
		return real(pid, from, nfrom, to, nto, flags);
	}
	pm_gate_enter(0, UINT64_MAX);
	atomic_fetch_add(&writes, 1);
	n = real(pid, from, nfrom, to, nto, flags);
	atomic_fetch_sub(&writes, 1);
	pm_gate_leave();
	return n;
}
