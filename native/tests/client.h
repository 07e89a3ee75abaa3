/* SPDX-License-Identifier: MIT */
/* A process whose memory is merged in a test: a child that does what an agent does, without any barrier, since it holds still. */
#ifndef PM_TEST_CLIENT_H
#define PM_TEST_CLIENT_H

#include "scanner.h"

struct client {
	pid_t pid;
	int sock;
	uint64_t number; /* of its mm */
	uint64_t memory; /* address of its pages */
	uint64_t pages;
	bool at_work; /* it says so in its answers */
	int fds[4]; /* pagemap, maps, mem, userfaultfd; -1 where it has none */
};

/* Start a child with `pages` pages of memory at an address of its own choice. */
void client_start(struct client *client, uint64_t pages);
void client_stop(struct client *client);
/* Fill a page from a number (0: zeros). */
void client_fill(struct client *client, uint64_t page, uint64_t number);
/* Change one byte of it. */
void client_poke(struct client *client, uint64_t page, uint64_t at);
/* A number that says what the page holds. */
uint64_t client_sum(struct client *client, uint64_t page);
void client_unmap(struct client *client, uint64_t page, uint64_t n);
/* A child of the child, with all its memory; it shares the client's fate. */
void client_fork(struct client *parent, struct client *client);

/* Take it into a scanner and mark its memory; `tracked` false withholds all descriptors. */
void client_add(struct pm_scanner *scanner, struct client *client, uint64_t number, uint64_t parent, bool tracked);
/* Have the client do all that the scanner asks of it; the number of requests. */
unsigned int client_serve(struct pm_scanner *scanner, struct client *client);
/* Have it do one thing. */
void client_do(struct pm_scanner *scanner, struct client *client, const struct pm_request_out *request);
/* One pass over the clients, requests and all. */
void pass(struct pm_scanner *scanner, struct client *clients, size_t n);
int64_t counter(const struct pm_scanner *scanner, const char *name);

#endif
