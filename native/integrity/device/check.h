/* The tuples of a block device, by the engine of pi.h. */
#ifndef SEALSVC_PI_CHECK_H
#define SEALSVC_PI_CHECK_H

#include <stdint.h>

#include "capability.h"
#include "pi.h"
#include "seal_channel.h"

/* What the tuples of some intervals in a row hold, or should. */
struct pi_expected {
	uint16_t fields; /* enum seal_field, as a set: those that are meant */
	uint16_t tag;
	uint64_t reftag; /* of the first */
};

/* The profile of a device's tuples; 0, or -EOPNOTSUPP when the engine makes no such tuple. */
int pi_check_profile(const struct seal_pi_capability *layout, struct seal_pi_profile *out);

/* Writes the named fields of `count` tuples; all else in them stays. 0 or -errno. */
int pi_check_generate(const struct seal_pi_capability *layout,
		      const struct seal_pi_profile *profile, const void *data, void *tuples,
		      uint32_t count, const struct pi_expected *expected);

/* Compares the named fields: 1 and the first difference (index, field, expected, found), 0, or -errno.
 * Tuples with the escape value of their type are passed over, as devices do. */
int pi_check_compare(const struct seal_pi_capability *layout, const struct seal_pi_profile *profile,
		     const void *data, const void *tuples, uint32_t count,
		     const struct pi_expected *expected, struct seal_channel_error *out);

#endif
