/* Names of UIO devices: which are TCMU's, and what they say. */
#include <string.h>

#include "../../../tests/check.h"
#include "../handler.h"

static struct tcmu_device device;

static int parse(const char *name)
{
	memset(&device, 0, sizeof(device));
	return tcmu_parse_name(name, &device);
}

int main(void)
{
	char long_name[2 * TCMU_NAME];

	CHECK(parse("tcm-user/3/disk/file//mnt/a/b") == 0 && device.hba == 3);
	CHECK(!strcmp(device.name, "disk") && !strcmp(device.subtype, "file"));
	CHECK(!strcmp(device.path, "/mnt/a/b"));
	CHECK(parse("tcm-user/0/d/null/4096") == 0 && !strcmp(device.path, "4096"));
	CHECK(parse("tcm-user/0/d/null") == 0 && !strcmp(device.subtype, "null") && !*device.path);
	CHECK(parse("tcm-user/0/d/") < 0);
	CHECK(parse("tcm-user/0/d") < 0);
	CHECK(parse("tcm-user/x/d/file/a") < 0);
	CHECK(parse("tcm-user//d/file/a") < 0);
	CHECK(parse("tcm-user/0/d/file/a:b") < 0);
	CHECK(parse("uio_pci_generic") < 0);
	CHECK(parse("") < 0);
	memset(long_name, 'a', sizeof(long_name));
	memcpy(long_name, "tcm-user/0/", 11);
	long_name[sizeof(long_name) - 1] = '\0';
	CHECK(parse(long_name) < 0);
	return 0;
}
