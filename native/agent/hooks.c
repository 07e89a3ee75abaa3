/* SPDX-License-Identifier: MIT */
/* The list of what is interposed, for processes that the agent was not preloaded into. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "patch.h"

long mbind(void *, unsigned long, int, const unsigned long *, unsigned long, unsigned int);

static void *open_and_patch(const char *path, int mode)
{
	void *handle = dlopen(path, mode);

	if (handle)
		pm_patch_all(NULL, 0);
	return handle;
}

#define HOOK(name) { #name, (void *)(uintptr_t)name }

void pm_hooks_install(void)
{
	static const struct pm_hook hooks[] = {
		HOOK(accept),	   HOOK(clock_nanosleep), HOOK(epoll_pwait), HOOK(epoll_wait), HOOK(madvise),
		HOOK(mlock),	   HOOK(mlock2),	  HOOK(mmap),	     HOOK(mmap64),     HOOK(mprotect),
		HOOK(mremap),	   HOOK(msgrcv),	  HOOK(msgsnd),	     HOOK(munmap),     HOOK(nanosleep),
		HOOK(pause),	   HOOK(poll),		  HOOK(ppoll),	     HOOK(prctl),      HOOK(pselect),
		HOOK(recv),	   HOOK(recvfrom),	  HOOK(recvmsg),     HOOK(select),     HOOK(sem_clockwait),
		HOOK(sem_timedwait), HOOK(semop),	  HOOK(semtimedop),  HOOK(send),       HOOK(sigsuspend),
		HOOK(sigtimedwait), HOOK(sigwaitinfo),	  HOOK(sleep),	     HOOK(usleep),
		HOOK(mlockall),	   HOOK(munlockall),	  HOOK(pkey_mprotect), HOOK(mbind),      HOOK(clone),
		HOOK(accept4),	   HOOK(connect),	  HOOK(fcntl),	     HOOK(fcntl64),    HOOK(open),
		HOOK(fopen),	   HOOK(fopen64),	  HOOK(open64),	   HOOK(openat),	  HOOK(openat64),    HOOK(process_vm_readv), HOOK(process_vm_writev), HOOK(recvmmsg),
		HOOK(sendmmsg),	   HOOK(sendmsg),	  HOOK(sendto),
#if __GLIBC_PREREQ(2, 35)
		HOOK(epoll_pwait2),
#endif
		{ "dlopen", (void *)(uintptr_t)open_and_patch },
	};

	pm_patch_all(hooks, sizeof(hooks) / sizeof(*hooks));
}
