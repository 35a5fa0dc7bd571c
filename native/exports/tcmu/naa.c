/* The NAA name of a logical unit: in its identification, and what third-party copies find it by. */
#include "scsi.h"

#define OUI 0x525400u /* locally administered; the rest of the name is made of the serial number */

static uint64_t hash(const char *name)
{
	uint64_t value = 0xcbf29ce484222325u; /* FNV-1a */

	for (; *name; name++)
		value = (value ^ (uint8_t)*name) * 0x100000001b3u;
	return value;
}

void scsi_naa(const struct scsi_lun *lun, uint8_t *naa)
{
	/* Registered extended. */
	scsi_put(naa, 8, 0x6ULL << 60 | (uint64_t)OUI << 36 | hash(lun->serial) >> 28);
	scsi_put(naa + 8, 8, hash(lun->serial) * 0x9e3779b97f4a7c15u);
}
