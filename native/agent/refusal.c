/* SPDX-License-Identifier: MIT */
#include "refusal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

static _Atomic uint32_t refused_for; /* enum pm_refusal */

/* Descriptors by which pages may be written behind the page tables' back at any time, or whose owner has registered memory that must stay what it is. */
static const struct {
	const char *prefix, *name;
} refused[] = {
	{ "anon_inode:[io_uring]", "io_uring" },
	{ "anon_inode:[userfaultfd]", "userfaultfd" },
	{ "anon_inode:[vfio", "vfio" },
	{ "/dev/vfio/", "vfio" },
	{ "/dev/vhost-", "vhost" },
	{ "/dev/infiniband/", "rdma" },
	{ "/dev/nvidia", "gpu" },
	{ "/dev/video", "v4l2" },
	{ "/dev/accel/", "accelerator" },
};

/* Devices that write to memory by faults alone. With others (SCSI passthrough, FUSE) a call holds pages for as long as it lasts. */
static const char *const harmless[] = {
	"/dev/null", "/dev/zero", "/dev/full",	"/dev/random", "/dev/urandom", "/dev/tty",     "/dev/pts/",
	"/dev/ptmx", "/dev/shm/", "/dev/console", "/dev/kvm",	 "/dev/net/tun", "/dev/mqueue/", "/dev/hugepages/",
};

/* What there was when it was last looked at. */
static int watched = -1; /* the program's list of descriptors, open */
static off_t descriptors;
static uint32_t opens;

struct search {
	struct pm_finding *finding;
	const int *own;
	uint32_t count, seen;
	char base[32]; /* of the thread whose table is the program's, in /proc */
};

void pm_refuse(uint32_t why, bool on)
{
	if (on)
		atomic_fetch_or(&refused_for, why);
	else
		atomic_fetch_and(&refused_for, ~why);
}

/* Whether reads from a file of the program's may hold pages (fcntl(2) knows only our own). */
static bool is_direct(const struct search *search, const char *name)
{
	char path[80], text[128];
	const char *flags, *mount;
	unsigned long how;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/fdinfo/%.16s", search->base, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = 0;
	flags = strstr(text, "flags:");
	mount = strstr(text, "mnt_id:");
	if (!flags || !mount) /* closed by now */
		return false;
	how = strtoul(flags + 6, NULL, 8);
	return how & O_DIRECT || ((how & O_ACCMODE) != O_WRONLY && !pm_mount_copies((uint32_t)strtoul(mount + 7, NULL, 10)));
}

/* Sockets whose memory a device writes to, or whose calls hold pages: by the name of their protocol. */
static void see_socket(struct search *search, const char *path)
{
	char protocol[32] = "";

	if (getxattr(path, "system.sockprotoname", protocol, sizeof(protocol) - 1) < 0)
		return;
	if (strcmp(protocol, "XDP") == 0)
		snprintf(search->finding->refusal, PM_DOMAIN_MAX, "xdp");
	else if (strcmp(protocol, "ALG") == 0)
		search->finding->direct = true;
}

bool pm_refusal_harmless(const char *target)
{
	for (size_t i = 0; i < sizeof(harmless) / sizeof(*harmless); i++)
		if (strncmp(target, harmless[i], strlen(harmless[i])) == 0)
			return true;
	return false;
}

static int see_descriptor(const char *name, void *context)
{
	struct search *search = context;
	char path[80], target[64];
	ssize_t n;

	if (name[0] < '0' || name[0] > '9')
		return 0;
	search->seen++;
	snprintf(path, sizeof(path), "%s/fd/%.16s", search->base, name);
	n = readlink(path, target, sizeof(target) - 1);
	if (n <= 0)
		return 0;
	target[n] = 0;
	for (uint32_t i = 0; i < search->count; i++)
		if (search->own[i] == atoi(name))
			return 0;
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++)
		if (strncmp(target, refused[i].prefix, strlen(refused[i].prefix)) == 0) {
			snprintf(search->finding->refusal, PM_DOMAIN_MAX, "%s", refused[i].name);
			return 1;
		}
	if (strncmp(target, "socket:", 7) == 0)
		see_socket(search, path);
	else if (target[0] == '/' && strncmp(target, "/memfd:", 7) != 0 && !search->finding->direct)
		search->finding->direct = strncmp(target, "/dev/", 5) == 0 ? !pm_refusal_harmless(target) : is_direct(search, name);
	return search->finding->refusal[0] != 0;
}

/* How many the program has: the size of the list since Linux 6.2, before that always 0. */
static off_t count_descriptors(void)
{
	struct stat status;

	return watched < 0 || fstat(watched, &status) ? 0 : status.st_size;
}

static void unwatch(void)
{
	if (watched >= 0)
		close(watched);
	watched = -1;
}

void pm_refusal_forget(void)
{
	unwatch();
	pm_opens_watch(false);
}

bool pm_refusal_stale(void)
{
	return pm_opens_direct() != opens || count_descriptors() > descriptors;
}

static void look_through(struct search *search)
{
	char path[48];
	int dir;

	snprintf(path, sizeof(path), "%s/fd", search->base);
	dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return;
	if (pm_table_is_own()) {
		unwatch();
		watched = dir;
		descriptors = count_descriptors();
	}
	pm_dir_each(dir, see_descriptor, search);
	if (watched < 0)
		close(dir);
}

/* Whether the kernel counts pages of this process as pinned: of a ring without a descriptor, say, or a device that is not in the list. */
static bool has_pinned(void)
{
	char text[2048];
	int fd = open("/proc/thread-self/status", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	const char *line;

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = 0;
	line = strstr(text, "VmPin:");
	return line && strtoul(line + 6, NULL, 10) > 0;
}

static int look_at_thread(const char *name, void *context)
{
	struct search *search = context;

	if (atoi(name) <= 0 || atoi(name) == (int)syscall(SYS_gettid))
		return 0;
	snprintf(search->base, sizeof(search->base), "/proc/self/task/%.10s", name);
	look_through(search);
	return search->seen != 0;
}

void pm_refusal_find(struct pm_finding *finding, const int *own, uint32_t count)
{
	struct search search = { .finding = finding, .own = own, .count = count, .base = "/proc/self" };
	uint32_t called = atomic_load(&refused_for);
	const char *async;

	memset(finding, 0, sizeof(*finding));
	pm_opens_watch(true);
	opens = pm_opens_direct(); /* before the look, so that none falls between */
	pm_mounts_begin();
	finding->vmas = pm_vma_count(&async);
	look_through(&search);
	if (!search.seen) { /* the first thread has ended, and its table with it */
		int dir = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (dir >= 0) {
			pm_dir_each(dir, look_at_thread, &search);
			close(dir);
		}
	}
	if (async)
		snprintf(finding->refusal, PM_DOMAIN_MAX, "%s", async);
	if (called)
		snprintf(finding->refusal, PM_DOMAIN_MAX, "%s",
			 called & PM_REFUSE_LOCKED ? "mlockall" : called & PM_REFUSE_CLONE ? "clone-vm" : "process_vm");
	if (!finding->refusal[0] && has_pinned())
		snprintf(finding->refusal, PM_DOMAIN_MAX, "pinned");
}
