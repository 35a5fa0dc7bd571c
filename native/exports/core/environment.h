/* The options of a target as `sealctl export` hands them to a program: SEALSVC_EXPORT_* in its
 * environment (sealsvc/exports/base.py, Served.core_environment). */
#ifndef EXPORT_ENVIRONMENT_H
#define EXPORT_ENVIRONMENT_H

#include "target.h"

/* Sets what the environment names and leaves the rest: for all that were set before to be defaults.
 * Strings are the environment's. 0, or -EINVAL with a text in `why`. */
int export_options_from_environment(struct export_options *options, char *why, size_t room);
/* One of them by its name: "name", "file", "kind", "fence", "prepare", "grace", "patience",
 * "read_only", "io", "discard", "stats" or "socket". 0 or -EINVAL. */
int export_option(struct export_options *options, const char *name, const char *value);

#endif
