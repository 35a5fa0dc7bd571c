#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "handler.h"

#define UIO "/sys/class/uio"
#define CORE "/sys/kernel/config/target/core"
#define PREFIX "tcm-user/"
#define SERIAL_PREFIX "T10 VPD Unit Serial Number: "

static int read_line(const char *path, char *line, size_t room)
{
	FILE *file = fopen(path, "re");
	int error = file ? 0 : -errno;

	if (file && !fgets(line, (int)room, file))
		error = -EIO;
	if (file)
		fclose(file);
	if (!error)
		line[strcspn(line, "\n")] = '\0';
	return error;
}

static int take_part(const char **at, char *part)
{
	size_t length = strcspn(*at, "/");

	if (!length || length >= TCMU_NAME || (*at)[length] != '/')
		return -EINVAL;
	memcpy(part, *at, length);
	part[length] = '\0';
	*at += length + 1;
	return 0;
}

int tcmu_parse_name(const char *name, struct tcmu_device *device)
{
	const char *at = name + strlen(PREFIX);
	char hba[TCMU_NAME], *end;

	/* LIO cannot have a ':' in a name; where there is one, it is another driver's. */
	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || strchr(name, ':'))
		return -EINVAL;
	if (take_part(&at, hba) < 0 || take_part(&at, device->name) < 0)
		return -EINVAL;
	device->hba = (unsigned)strtoul(hba, &end, 10);
	if (*end || strlen(at) >= TCMU_NAME)
		return -EINVAL;
	if (take_part(&at, device->subtype) == 0) {
		strcpy(device->path, at);
		return 0;
	}
	/* A subtype alone. */
	if (!*at)
		return -EINVAL;
	strcpy(device->subtype, at);
	device->path[0] = '\0';
	return 0;
}

static int look_at(const char *uio, struct tcmu_device *device)
{
	char path[TCMU_NAME], line[2 * TCMU_NAME];

	snprintf(path, sizeof(path), UIO "/%.32s/name", uio);
	if (read_line(path, line, sizeof(line)) < 0 || tcmu_parse_name(line, device) < 0)
		return -EINVAL;
	snprintf(path, sizeof(path), UIO "/%.32s/maps/map0/size", uio);
	if (read_line(path, line, sizeof(line)) < 0)
		return -EINVAL;
	device->map_size = strtoull(line, NULL, 0);
	device->minor = atoi(uio + strlen("uio"));
	return 0;
}

void tcmu_discover(void (*found)(const struct tcmu_device *device, void *context), void *context)
{
	DIR *directory = opendir(UIO);
	struct dirent *entry;

	while (directory && (entry = readdir(directory))) {
		struct tcmu_device device = {0};

		if (strncmp(entry->d_name, "uio", 3) == 0 && look_at(entry->d_name, &device) == 0)
			found(&device, context);
	}
	if (directory)
		closedir(directory);
}

unsigned long tcmu_attribute(const struct tcmu_device *device, const char *name,
			     unsigned long missing)
{
	char path[2 * TCMU_NAME], line[64], *end;
	unsigned long value;

	snprintf(path, sizeof(path), CORE "/user_%u/%s/attrib/%s", device->hba, device->name, name);
	if (read_line(path, line, sizeof(line)) < 0)
		return missing;
	value = strtoul(line, &end, 0);
	return *end ? missing : value;
}

void tcmu_serial(const struct tcmu_device *device, char *serial, unsigned room)
{
	char path[2 * TCMU_NAME], line[TCMU_NAME];

	snprintf(path, sizeof(path), CORE "/user_%u/%s/wwn/vpd_unit_serial", device->hba,
		 device->name);
	if (read_line(path, line, sizeof(line)) < 0 ||
	    strncmp(line, SERIAL_PREFIX, strlen(SERIAL_PREFIX)) != 0 ||
	    !line[strlen(SERIAL_PREFIX)])
		snprintf(serial, room, "%s", device->name);
	else
		snprintf(serial, room, "%s", line + strlen(SERIAL_PREFIX));
}
