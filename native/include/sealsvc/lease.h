/* F_WRLCK leases and a thread that hears of their breaks (fcntl(2), any kernel). */
#ifndef SEALSVC_LEASE_H
#define SEALSVC_LEASE_H

#include <stddef.h>
#include <stdint.h>

struct seal_leases;

/* Starts the listening thread. 0 or -errno. */
int seal_leases_open(struct seal_leases **out);
/* Stops it. Leases stay with their descriptors: drop them first. */
void seal_leases_close(struct seal_leases *leases);

/* An eventfd that is readable while breaks wait to be taken. Owned by `leases`. */
int seal_leases_fd(const struct seal_leases *leases);

/* Take an F_WRLCK lease on the description of fd and have its break reported. 0 or -errno (-EAGAIN:
 * somebody else has the file open or mapped). */
int seal_lease_take(struct seal_leases *leases, int fd);

/* Give the lease up: whoever waits in open(2) goes on. 0 or -errno. */
int seal_lease_drop(int fd);

/* 1 while the lease is whole, 0 when it is being broken or is gone, or -errno. */
int seal_lease_whole(int fd);

/* Descriptors whose leases are being broken, at most max; -1 among them means that signals were lost
 * and every lease must be looked at. Returns how many. */
size_t seal_leases_broken(struct seal_leases *leases, int *out, size_t max);

#endif
