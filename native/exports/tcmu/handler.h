/* One TCMU device, served by threads of its own: a fault in its ring, or a backend that hangs, holds up no
 * other. */
#ifndef SEALSVC_TCMU_HANDLER_H
#define SEALSVC_TCMU_HANDLER_H

#include "plugin.h"

#define TCMU_NAME 256

/* As /sys/class/uio/uioN/name says: tcm-user/HBA/DEVICE/SUBTYPE/PATH. */
struct tcmu_device {
	int minor;
	unsigned hba;
	char name[TCMU_NAME], subtype[TCMU_NAME], path[TCMU_NAME];
	uint64_t map_size;
};

/* Parts of a name in the form above: 0, or -EINVAL for what is no TCMU device's. */
int tcmu_parse_name(const char *name, struct tcmu_device *device);
/* The devices of `subtype` that there are now: calls `found` for each. */
void tcmu_discover(void (*found)(const struct tcmu_device *device, void *context), void *context);
/* An attribute of the device in configfs; `missing` when it cannot be read. */
unsigned long tcmu_attribute(const struct tcmu_device *device, const char *name,
			     unsigned long missing);
/* wwn/vpd_unit_serial, or the device's name where none is set. */
void tcmu_serial(const struct tcmu_device *device, char *serial, unsigned room);

struct tcmu_handler;

/* Opens /dev/uioN and the backend and serves, first of all the commands that wait in the ring. `notes` is the
 * directory of struct tcmu_note, or NULL. 0 or a negative errno, with a text on stderr. */
int tcmu_handler_start(const struct tcmu_device *device, const struct tcmu_plugin *plugin,
		       const char *notes, unsigned threads, struct tcmu_handler **handler);
/* Ends after the commands under way. */
void tcmu_handler_stop(struct tcmu_handler *handler);
const struct tcmu_device *tcmu_handler_device(const struct tcmu_handler *handler);

/* netlink.c: a socket that hears of devices that come and go (family TCM-USER, group config); -errno. */
int tcmu_netlink_open(void);
/* Reads what there is: 1 when devices are to be looked for again, 0, or a negative errno. */
int tcmu_netlink_read(int fd);

#endif
