/* SPDX-License-Identifier: MIT */
#ifndef PM_PROTO_H
#define PM_PROTO_H

#include <stdbool.h>
#include <stddef.h>

/* 0 when the datagram is well-formed, else -EBADMSG and the reason. */
int pm_message_check(const void *datagram, size_t length, bool to_daemon, const char **reason);

#endif
