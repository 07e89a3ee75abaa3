/* SPDX-License-Identifier: MIT */
/* The first process of the machine that tools/try-aarch64 boots: runs the programs in /tests, says how each ended, powers off. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int run(const char *path)
{
	pid_t pid = fork();
	int status = -1;

	if (pid == 0) {
		alarm(600); /* emulated: slow */
		execl(path, path, (char *)NULL);
		_exit(127);
	}
	while (pid > 0 && waitpid(-1, &status, 0) != pid)
		;
	return status;
}

int main(void)
{
	int failed = 0, count = 0, fd;
	struct dirent **names;

	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755), mkdir("/tmp", 01777);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	mkdir("/dev/shm", 01777);
	mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
	count = scandir("/tests", &names, NULL, alphasort);
	for (int i = 0; i < count; i++) {
		char path[512];
		int status;

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/tests/%s", names[i]->d_name);
		printf("TEST %s ...\n", names[i]->d_name);
		fflush(stdout);
		status = run(path);
		printf("TEST %s %s (status %#x)\n", names[i]->d_name, status ? "FAILED" : "ok", (unsigned int)status);
		failed += status != 0;
	}
	printf("TESTS %s\n", failed || count <= 2 ? "FAILED" : "PASSED");
	fflush(stdout);
	fd = fsync(1);
	(void)fd;
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
