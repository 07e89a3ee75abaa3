/* SPDX-License-Identifier: MIT */
/*
 * deny WHAT[,WHAT...] COMMAND...: run a command on a kernel that lacks something, by a seccomp filter.
 * WHAT: userfaultfd, pagemap_scan, procmap_query, process_vm_readv, close_range, unshare.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define UNLESS(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (skip))
#define FAIL(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static int install(struct sock_filter *filter, unsigned short length)
{
	struct sock_fprog program = { .len = length, .filter = filter };

	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int deny_call(unsigned int number, unsigned int error)
{
	struct sock_filter filter[] = { LOAD(nr), UNLESS(number, 1), FAIL(error), ALLOW };

	return install(filter, sizeof(filter) / sizeof(*filter));
}

static int deny_ioctl(unsigned int type_and_number, unsigned int error)
{
	struct sock_filter filter[] = {
		LOAD(nr), UNLESS(SYS_ioctl, 4), LOAD(args[1]), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xffff),
		UNLESS(type_and_number, 1), FAIL(error), ALLOW,
	};

	return install(filter, sizeof(filter) / sizeof(*filter));
}

int main(int argc, char **argv)
{
	if (argc < 3 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return 2;
	for (char *what = strtok(argv[1], ","); what; what = strtok(NULL, ",")) {
		int failed = strcmp(what, "userfaultfd") == 0 ? deny_call(SYS_userfaultfd, ENOSYS) :
			     strcmp(what, "process_vm_readv") == 0 ? deny_call(SYS_process_vm_readv, EPERM) :
			     strcmp(what, "close_range") == 0 ? deny_call(SYS_close_range, EPERM) :
			     strcmp(what, "unshare") == 0 ? deny_call(SYS_unshare, EPERM) :
			     strcmp(what, "pagemap_scan") == 0 ? deny_ioctl('f' << 8 | 16, ENOTTY) :
			     strcmp(what, "procmap_query") == 0 ? deny_ioctl('f' << 8 | 17, ENOTTY) :
								  -1;
		if (failed) {
			fprintf(stderr, "deny: %s\n", what);
			return 2;
		}
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 2;
}
