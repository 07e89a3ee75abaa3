/* SPDX-License-Identifier: MIT */
/*
 * The words that the daemon and an agent exchange.
 *
 * One SOCK_SEQPACKET Unix socket per process, one datagram a message, native byte order (both ends are on one
 * machine).  A message is a header and `count` equal entries.  Descriptors ride along as SCM_RIGHTS.
 *
 * Nothing here is trusted.  The agent compares bytes itself before it replaces a page, so a wrong message from the
 * daemon can cost time but not data; the daemon treats every number of an agent as a hint and keeps the kernel's own
 * tables (/proc/PID/maps, pagemap) as the truth.
 */
#ifndef PM_PROTOCOL_H
#define PM_PROTOCOL_H

#include <stdint.h>

#define PM_PROTOCOL_VERSION 1u
#define PM_MESSAGE_MAX 65536u /* bytes in one datagram, header included */
#define PM_FDS_MAX 64u        /* descriptors in one datagram, to PM_HELLO_GIVES */
#define PM_FDS_FEW 16u        /* to others */
#define PM_HASH_PAGES 4096u   /* pages of one PM_HASH */
#define PM_SEGMENT_BYTES (64u << 20) /* of a file of the pool */
#define PM_DOMAIN_MAX 64u     /* bytes of a domain's name, the final NUL included */

enum pm_message_type {
	/* agent -> daemon */
	PM_HELLO = 1,  /* 1 pm_hello, with descriptors; always the first message */
	PM_MARK = 2,   /* pm_range[]: madvise; flags = enum pm_mark */
	PM_ALL = 3,    /* 1 pm_range: prctl(PR_SET_MEMORY_MERGE); flags = 0 off, 1 on */
	PM_GONE = 4,   /* pm_range[]: unmapped, moved away, discarded or mapped anew; a hint */
	PM_RESULT = 5, /* 1 pm_result, then pm_failed[] (count = number of pm_failed) */
	PM_BYE = 6,    /* no entries: the agent stops; its pages stay merged and correct */
	PM_HASHES = 7, /* 1 pm_hashes, then count times 8 bytes: the key of each page of a PM_HASH (pm_page_key), 0: not readable */

	/* daemon -> agent */
	PM_WELCOME = 16, /* 1 pm_welcome */
	PM_MERGE = 17,   /* pm_run[], with the descriptors of the segments they name, then that of PM_FD_UFFD if there is one */
	PM_UNMERGE = 18, /* pm_range[]: turn pool mappings back into private anonymous memory */
	PM_ZERO = 19,    /* pm_range[]: drop pages that are all zero, after checking */
	PM_PING = 20,    /* no entries: answer with an empty PM_RESULT of the same seq.  0: whether the program is at work, before anything else is asked */
	PM_ADVISE = 21,  /* pm_range[]: madvise on the program's behalf; flags = PM_MARK_MERGEABLE or PM_MARK_UNMERGEABLE */
	PM_ADVISE_ALL = 22, /* 1 pm_range: prctl(PR_SET_MEMORY_MERGE) on its behalf; flags as PM_ALL's.  Both are answered by PM_MARK and PM_ALL alone */
	PM_HASH = 23,  /* pm_range[], of PM_HASH_PAGES pages at most: look at them where they are; flags = enum pm_hash_flag; answered by PM_HASHES.  Only to PM_HELLO_GIVES */
	PM_GIVE = 24,  /* as PM_MERGE, but the segment is not sealed yet and the pages' content is to be written to it first.  Only to PM_HELLO_GIVES */
	PM_STEP_BACK = 25, /* 1 pm_range; flags = 1: beside a program at work, be it this one or another, 0: no longer.  Not answered */
};

struct pm_header {
	uint32_t type;  /* enum pm_message_type */
	uint32_t count; /* entries that follow */
	uint64_t seq;   /* daemon -> agent: number of the request; PM_RESULT repeats it */
};

/* Which descriptors came with a PM_HELLO, in this order; absent ones are left out and their bit is clear. */
enum pm_hello_fd {
	PM_FD_PAGEMAP = 1u << 0, /* /proc/self/pagemap, O_RDONLY: PAGEMAP_SCAN works on the opener's memory */
	PM_FD_MAPS = 1u << 1,    /* /proc/self/maps, O_RDONLY */
	PM_FD_MEM = 1u << 2,     /* /proc/self/mem, O_RDONLY: the fallback where process_vm_readv is forbidden */
	PM_FD_UFFD = 1u << 3,    /* userfaultfd with WP_ASYNC (user-mode-only is enough): write tracking, no barrier */
};

enum pm_hello_flag {
	PM_HELLO_PRELOADED = 1u << 0, /* LD_PRELOAD: the agent has seen every call since the start */
	PM_HELLO_IMPORTED = 1u << 1,  /* came in later, by `import pagemerge` */
	PM_HELLO_FORKED = 1u << 2,    /* child of `parent`, which had an agent */
	PM_HELLO_ALL = 1u << 3,       /* PR_SET_MEMORY_MERGE is on already (inherited, or `run --all`) */
	PM_HELLO_BACK = 1u << 4,      /* was connected before: the marks follow anew */
	PM_HELLO_GIVES = 1u << 6,    /* hashes its pages itself, and writes them to the pool; takes many descriptors */
	PM_HELLO_SHARED_TABLE = 1u << 5, /* no descriptor table of its own is to be had: no barrier by userfaultfd */
};

enum pm_barrier {
	PM_BARRIER_UFFD = 1u << 0,   /* userfaultfd write-protection, kernel-mode faults included */
	PM_BARRIER_FREEZE = 1u << 1, /* the other threads wait in a signal handler */
	PM_BARRIER_SEALED = 1u << 2, /* the owner promised not to write; mprotect holds it to that */
};

struct pm_hello {
	uint32_t version;  /* PM_PROTOCOL_VERSION */
	uint32_t flags;    /* enum pm_hello_flag */
	uint32_t fds;      /* enum pm_hello_fd */
	uint32_t barriers; /* enum pm_barrier: what this process is able to do */
	int32_t parent;    /* pid of the parent when PM_HELLO_FORKED, else 0 */
	uint32_t page_size;
	uint64_t own_start; /* the agent's own memory, never to be merged; own_end 0: none */
	uint64_t own_end;
	char domain[PM_DOMAIN_MAX]; /* "" is the user's default domain */
	char refusal[PM_DOMAIN_MAX]; /* "" or why this process can't be merged: "io_uring", "vfio", "clone-vm" ... */
};

struct pm_welcome {
	uint32_t version;
	uint32_t barrier; /* enum pm_barrier: the one to use, 0 = the agent's own choice */
	int32_t daemon_pid;
	uint32_t freeze_max_usecs; /* longest time to hold the threads; 0 = default (1000) */
};

enum pm_mark {
	PM_MARK_MERGEABLE = 1,
	PM_MARK_UNMERGEABLE = 2,
	PM_MARK_SEALED = 3,   /* mergeable, and read-only by its owner's promise */
	PM_MARK_UNSEALED = 4, /* the promise is withdrawn; stays mergeable */
	PM_MARK_EXCLUDED = 5, /* never (locked, not forkable, pinned ...), until PM_GONE */
};

enum pm_gone {
	PM_GONE_UNMAPPED = 0,  /* what is mapped there now, if anything, is another mapping: marks are void */
	PM_GONE_DISCARDED = 1, /* MADV_DONTNEED and the like: the mapping stays, and its marks */
};

enum pm_hash_flag {
	PM_HASH_WHOLE = 1u << 0, /* both halves of the key */
};

struct pm_range {
	uint64_t start; /* bytes, page aligned */
	uint64_t end;   /* exclusive */
	uint32_t flags;
	uint32_t pad;
};

/*
 * `npages` pages at `addr` and where they go: page `pgoff` and the following of the segment `segment`.
 *
 * PM_RUN_GAP pages are not in the pool; they are private pages between runs of the same alignment, and are kept as
 * private copies so that the runs around them need one mapping, not three.  A gap never comes first or last in a
 * group.  PM_RUN_JOINED: continues the run before it (addr and pgoff follow on) in the same mapping.
 */
enum pm_run_flag {
	PM_RUN_GAP = 1u << 0,
	PM_RUN_JOINED = 1u << 1,
};

struct pm_run {
	uint64_t addr;
	uint32_t npages;
	uint32_t segment; /* index into this message's descriptors */
	uint32_t pgoff;   /* pages */
	uint32_t flags;   /* enum pm_run_flag */
};

struct pm_result {
	uint32_t merged;  /* pages now mapped from the pool (PM_MERGE), zeroed (PM_ZERO) or private (PM_UNMERGE) */
	uint32_t failed;  /* pages left as they were */
	uint32_t copied;  /* gap pages copied */
	uint32_t mappings; /* mappings made */
	uint16_t barrier; /* enum pm_barrier: the one used */
	uint16_t at_work; /* 1: the program uses the CPU, or wakes up often, and would notice stops */
	int32_t error;    /* 0, or a negative errno that ended the whole request */
	uint64_t cpu_ns;  /* CPU time that the agent has used since it started */
	uint64_t stopped_ns; /* time for which threads were held in this request */
};

struct pm_hashes {
	uint64_t cpu_ns; /* these as in pm_result */
	uint16_t at_work;
	uint16_t unused[3];
};

/* Every page of the request that was not merged; pages that are not listed were. */
enum pm_failure {
	PM_FAIL_DIFFERS = 1,  /* the bytes are not the pool's */
	PM_FAIL_WRITTEN = 2,  /* written while we looked */
	PM_FAIL_GONE = 3,     /* no longer the kind of mapping that can be merged */
	PM_FAIL_VMAS = 4,     /* vm.max_map_count is near */
	PM_FAIL_BARRIER = 5,  /* a thread did not stop in time, or no barrier is to be had */
	PM_FAIL_STACK = 6,    /* a stopped thread's stack is in it */
	PM_FAIL_SYSTEM = 7,   /* a system call failed */
};

struct pm_failed {
	uint64_t addr;
	uint32_t npages;
	uint32_t why; /* enum pm_failure */
};

_Static_assert(sizeof(struct pm_header) == 16, "wire format");
_Static_assert(sizeof(struct pm_hello) == 168, "wire format");
_Static_assert(sizeof(struct pm_welcome) == 16, "wire format");
_Static_assert(sizeof(struct pm_range) == 24, "wire format");
_Static_assert(sizeof(struct pm_run) == 24, "wire format");
_Static_assert(sizeof(struct pm_result) == 40, "wire format");
_Static_assert(sizeof(struct pm_hashes) == 16, "wire format");
_Static_assert(sizeof(struct pm_failed) == 16, "wire format");

#endif
