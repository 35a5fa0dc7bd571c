/* What libbpf says: its last warning, and the program that this was about. */
#include "bpf_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

/* libbpf has one print function for a process. What it says last is the reason, and the only place
 * where it names the program that did not load. */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_warning[128], last_program[32];

static void keep_line(const char *line)
{
	snprintf(last_warning, sizeof(last_warning), "%.*s", (int)strcspn(line, "\n"), line);
}

/* The verifier's log comes as one text. What it objects to stands in the line before its figures. */
static void keep_objection(char *log)
{
	char *figures = strstr(log, "\nprocessed "), *line;

	if (!figures)
		return;
	*figures = '\0';
	line = strrchr(log, '\n');
	if (line)
		keep_line(line + 1);
}

static int keep_warning(enum libbpf_print_level level, const char *format, va_list arguments)
{
	char *text, *line;

	if (level != LIBBPF_WARN || vasprintf(&text, format, arguments) < 0)
		return 0;
	line = strncmp(text, "libbpf: ", 8) ? text : text + 8;
	pthread_mutex_lock(&log_lock);
	sscanf(line, "prog '%31[^']'", last_program);
	if (strstr(line, "BEGIN PROG LOAD LOG"))
		keep_objection(line);
	else if (!strstr(line, "failed to load"))
		keep_line(line);
	pthread_mutex_unlock(&log_lock);
	free(text);
	return 0;
}

void bpf_explain(char *why, size_t size, const char *what, int error)
{
	SCOPED_LOCK(&log_lock);
	snprintf(why, size, "%s: %s%s%s", what, strerror(-error), last_warning[0] ? ": " : "",
		 last_warning);
}

void bpf_log_begin(void)
{
	libbpf_set_print(keep_warning);
	SCOPED_LOCK(&log_lock);
	last_program[0] = last_warning[0] = '\0';
}

int bpf_log_is_about(const char *program)
{
	int is_about;

	SCOPED_LOCK(&log_lock);
	is_about = !strcmp(program, last_program);
	return is_about;
}
