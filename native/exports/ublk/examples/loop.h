/* What the larger examples share: devices that are added, served by one thread for each queue number, and
 * stopped at SIGINT or SIGTERM. It is the program's part of the work, not the library's. */
#ifndef SEALSVC_UBLK_LOOP_H
#define SEALSVC_UBLK_LOOP_H

#include "../ublk.h"

struct loop {
	struct ublk_config config;
	unsigned devices;
	int recover;	  /* serve this device, whose server died, instead of adding one; or -1 */
	int with_buffers; /* a buffer of max_bytes for each request in advance */
	/* In the thread of the event's queue. `device` counts from 0. */
	void (*event)(const struct ublk_event *event, unsigned device);
};

/* Prints /dev/ublkbN, one a line, when they can be used. The exit status. */
int loop_run(const struct loop *loop);

#endif
