#include "environment.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "SEALSVC_EXPORT_"

static int seconds(const char *text, double *value)
{
	char *end;

	errno = 0;
	*value = strtod(text, &end);
	return errno || end == text || *end || !(*value >= 0 && *value < 1e9) ? -EINVAL : 0;
}

/* Which of the words it is, or -EINVAL. */
static int word(const char *text, const char *const *words, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(text, words[i]))
			return i;
	}
	return -EINVAL;
}

static int number(struct export_options *options, const char *name, const char *value)
{
	static const char *const ios[] = {"auto", "mapped", "direct"};
	static const char *const discards[] = {"refuse", "recall"};
	static const char *const booleans[] = {"0", "1"};
	int found;

	if (!strcmp(name, "grace"))
		return seconds(value, &options->grace);
	if (!strcmp(name, "patience"))
		return seconds(value, &options->patience);
	if (!strcmp(name, "io")) {
		found = word(value, ios, 3);
		options->io = found < 0 ? EXPORT_IO_AUTO : (enum export_io)found;
	} else if (!strcmp(name, "discard")) {
		found = word(value, discards, 2);
		options->discard = found < 0 ? EXPORT_DISCARD_REFUSE : (enum export_discard)found;
	} else if (!strcmp(name, "read_only")) {
		found = word(value, booleans, 2);
		options->read_only = found != 0;
	} else {
		found = -EINVAL;
	}
	return found < 0 ? found : 0;
}

int export_option(struct export_options *options, const char *name, const char *value)
{
	const struct {
		const char *name, **where;
	} strings[] = {
		{"name", &options->name},	{"file", &options->path},
		{"kind", &options->kind},	{"fence", &options->fence},
		{"prepare", &options->prepare}, {"stats", &options->stats},
		{"socket", &options->socket},
	};

	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
		if (!strcmp(name, strings[i].name)) {
			*strings[i].where = value;
			return 0;
		}
	}
	return number(options, name, value);
}

static const char *variable(const char *name, char *out, size_t room)
{
	size_t at = (size_t)snprintf(out, room, PREFIX "%s", name);

	for (size_t i = 0; i < at; i++)
		out[i] = (char)toupper((unsigned char)out[i]);
	return getenv(out);
}

int export_options_from_environment(struct export_options *options, char *why, size_t room)
{
	static const char *const names[] = {"name",    "file",	  "kind",     "fence",
					    "prepare", "grace",	  "patience", "read_only",
					    "io",      "discard", "stats"};
	char key[64];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *value = variable(names[i], key, sizeof(key));

		if (value && export_option(options, names[i], value)) {
			snprintf(why, room, "%s=%s is not understood", key, value);
			return -EINVAL;
		}
	}
	return 0;
}
