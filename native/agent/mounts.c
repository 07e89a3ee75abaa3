/* SPDX-License-Identifier: MIT */
/*
 * Which file systems copy what is read(2) from their files.
 *
 * Some have their server, or a device, write to the reader's pages, which they take hold of for as long as the read lasts, although the file was not opened for O_DIRECT: FUSE (where the
 * server says so), 9p, CIFS and others.  So only those that are known to copy are trusted.  Of a file that is open, the mount's number is looked up in the list of
 * mounts: asking the file system itself may take as long as its server likes.
 */
#include "refusal.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/vfs.h>

enum { MOUNTS_KEPT = 32, TYPE_MAX = 16 };

static const struct {
	char name[TYPE_MAX];
	uint32_t magic; /* of statfs(2) */
} copying[] = {
	{ "ext4", 0xef53 },	     { "ext3", 0xef53 },       { "ext2", 0xef53 },	  { "xfs", 0x58465342 },      { "btrfs", 0x9123683e },
	{ "tmpfs", 0x01021994 },     { "overlay", 0x794c7630 }, { "proc", 0x9fa0 },	  { "sysfs", 0x62656572 },    { "devtmpfs", 0x01021994 },
	{ "devpts", 0x1cd1 },	     { "cgroup2", 0x63677270 }, { "cgroup", 0x27e0eb },	  { "f2fs", 0xf2f52010 },     { "squashfs", 0x73717368 },
	{ "erofs", 0xe0f5e1e2 },     { "iso9660", 0x9660 },	{ "vfat", 0x4d44 },	  { "exfat", 0x2011bab0 },    { "nfs", 0x6969 },
	{ "nfs4", 0x6969 },	     { "ramfs", 0x858458f6 },	{ "rootfs", 0x858458f6 }, { "debugfs", 0x64626720 },  { "tracefs", 0x74726163 },
	{ "securityfs", 0x73636673 }, { "mqueue", 0x19800202 }, { "hugetlbfs", 0x958458f6 },
};

/* What is known of the mounts, and the list itself, by which the kernel tells when it has changed; kept where nobody but us can close it. */
static int list = -1;
static struct {
	uint32_t id;
	bool copies;
} known[MOUNTS_KEPT];
static uint32_t known_count;

static bool is_copying(const char *type)
{
	for (size_t i = 0; i < sizeof(copying) / sizeof(*copying); i++)
		if (strcmp(copying[i].name, type) == 0)
			return true;
	return false;
}

/* The type of a mount, from a line "29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw": lines are long, and are gone through a piece at a time. */
static bool find_type(int fd, uint32_t wanted, char type[TYPE_MAX])
{
	enum { NUMBER, FIELDS, TYPE, REST } state = NUMBER;
	char piece[1024], before[2] = { 0 };
	uint32_t number = 0, length = 0;
	off_t at = 0;
	ssize_t n;

	for (; (n = pread(fd, piece, sizeof(piece), at)) > 0; at += n)
		for (ssize_t i = 0; i < n; i++) {
			char c = piece[i];

			if (c == '\n') {
				state = NUMBER;
				number = length = 0;
			} else if (state == NUMBER && c >= '0' && c <= '9') {
				number = number * 10 + (uint32_t)(c - '0');
			} else if (state == NUMBER) {
				state = number == wanted ? FIELDS : REST;
			} else if (state == FIELDS && c == ' ' && before[1] == '-' && before[0] == ' ') {
				state = TYPE;
			} else if (state == TYPE && (c == ' ' || length == TYPE_MAX - 1)) {
				type[length] = 0;
				return true;
			} else if (state == TYPE) {
				type[length++] = c;
			}
			before[0] = before[1];
			before[1] = c;
		}
	return false;
}

void pm_mounts_begin(void)
{
	struct pollfd changed = { .fd = list, .events = POLLPRI };

	if (list >= 0 && poll(&changed, 1, 0) > 0)
		known_count = 0;
}

bool pm_mount_copies(uint32_t id)
{
	char type[TYPE_MAX];
	bool copies;

	for (uint32_t i = 0; i < known_count; i++)
		if (known[i].id == id)
			return known[i].copies;
	if (list < 0)
		list = open("/proc/thread-self/mountinfo", O_RDONLY | O_CLOEXEC);
	copies = list >= 0 && find_type(list, id, type) && is_copying(type);
	if (!pm_table_is_own()) {
		close(list);
		list = -1;
	} else if (list >= 0 && known_count < MOUNTS_KEPT) {
		known[known_count].id = id;
		known[known_count++].copies = copies;
	}
	return copies;
}

bool pm_file_copies(int fd)
{
	struct statfs status;

	if (fstatfs(fd, &status))
		return false;
	for (size_t i = 0; i < sizeof(copying) / sizeof(*copying); i++)
		if (copying[i].magic == (uint32_t)status.f_type)
			return true;
	return false;
}

/* The list is of the parent's agent's table. */
void pm_mounts_forked(void)
{
	list = -1;
	known_count = 0;
}
