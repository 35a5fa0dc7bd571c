/* sealsvc-tcmu: serves the TCMU devices whose subtype is one of its plugins', and finds those that come later.
 * Several run side by side, with different plugins or devices (docs/exports-tcmu.md). */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "handler.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif
#define NOTES "/run/sealsvc-tcmu"
#define MAX_DEVICES 256
#define RETRY_MS 1000

extern const struct tcmu_plugin tcmu_null, tcmu_file, tcmu_sealed;

/* A plugin is a line here. */
const struct tcmu_plugin *const tcmu_plugins[] = {
	&tcmu_null,
	&tcmu_file,
	&tcmu_sealed,
	NULL,
};

struct runner {
	const char *subtype; /* NULL: all plugins' */
	const char *only;    /* HBA/NAME; NULL: all devices */
	const char *notes;
	unsigned threads;
	struct tcmu_handler *handlers[MAX_DEVICES];
	unsigned count;
	unsigned failed; /* devices that could not be started */
};

static int is_same(const struct tcmu_device *one, const struct tcmu_device *other)
{
	return one->minor == other->minor && one->hba == other->hba &&
	       strcmp(one->name, other->name) == 0;
}

static const struct tcmu_plugin *plugin_for(const struct runner *runner,
					    const struct tcmu_device *device)
{
	char name[2 * TCMU_NAME];

	snprintf(name, sizeof(name), "%u/%s", device->hba, device->name);
	if (runner->only && strcmp(runner->only, name) != 0)
		return NULL;
	if (runner->subtype && strcmp(runner->subtype, device->subtype) != 0)
		return NULL;
	for (const struct tcmu_plugin *const *plugin = tcmu_plugins; *plugin; plugin++)
		if (strcmp((*plugin)->subtype, device->subtype) == 0)
			return *plugin;
	return NULL;
}

static void start(const struct tcmu_device *device, void *context)
{
	struct runner *runner = context;
	const struct tcmu_plugin *plugin = plugin_for(runner, device);

	if (!plugin || runner->count == MAX_DEVICES)
		return;
	for (unsigned i = 0; i < runner->count; i++)
		if (is_same(device, tcmu_handler_device(runner->handlers[i])))
			return;
	if (tcmu_handler_start(device, plugin, runner->notes, runner->threads,
			       &runner->handlers[runner->count]) < 0) {
		runner->failed++;
		return;
	}
	runner->count++;
	printf("serving uio%d %u/%s (%s)\n", device->minor, device->hba, device->name,
	       device->subtype);
	fflush(stdout);
}

struct search {
	const struct tcmu_device *wanted;
	int found;
};

static void match(const struct tcmu_device *device, void *context)
{
	struct search *search = context;

	search->found |= is_same(device, search->wanted);
}

static void stop_removed(struct runner *runner)
{
	for (unsigned i = 0; i < runner->count;) {
		struct search search = {.wanted = tcmu_handler_device(runner->handlers[i])};

		tcmu_discover(match, &search);
		if (search.found) {
			i++;
			continue;
		}
		printf("removed %u/%s\n", search.wanted->hba, search.wanted->name);
		fflush(stdout);
		tcmu_handler_stop(runner->handlers[i]);
		runner->handlers[i] = runner->handlers[--runner->count];
	}
}

static int run(struct runner *runner)
{
	struct pollfd wanted[2] = {{.events = POLLIN}, {.events = POLLIN}};
	sigset_t ends;

	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	wanted[0].fd = signalfd(-1, &ends, SFD_CLOEXEC);
	wanted[1].fd = tcmu_netlink_open();
	if (wanted[1].fd < 0) {
		fprintf(stderr,
			"sealsvc-tcmu: netlink family TCM-USER: %s (modprobe "
			"target_core_user)\n",
			strerror(-wanted[1].fd));
		return 1;
	}
	/* Listening comes first, so that no device is missed. One that was named is there. */
	tcmu_discover(start, runner);
	if (runner->only && !runner->count)
		return 1;
	while (!wanted[0].revents) {
		/* What failed may be right in a moment: a file that is not there yet. */
		poll(wanted, 2, runner->failed ? RETRY_MS : -1);
		runner->failed = 0;
		if (wanted[1].revents)
			tcmu_netlink_read(wanted[1].fd);
		stop_removed(runner);
		if (!wanted[0].revents)
			tcmu_discover(start, runner);
	}
	while (runner->count)
		tcmu_handler_stop(runner->handlers[--runner->count]);
	return 0;
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: sealsvc-tcmu [--subtype SUBTYPE] [--only HBA/NAME] [--threads N] "
		"[--notes DIRECTORY]\nserves tcm-user/HBA/NAME/SUBTYPE/PATH, where SUBTYPE/PATH "
		"is one of:\n");
	for (const struct tcmu_plugin *const *plugin = tcmu_plugins; *plugin; plugin++)
		fprintf(to, "  %s/%s\n", (*plugin)->subtype, (*plugin)->about);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"subtype", required_argument, NULL, 's'}, {"only", required_argument, NULL, 'o'},
		{"threads", required_argument, NULL, 't'}, {"notes", required_argument, NULL, 'n'},
		{"help", no_argument, NULL, 'h'},	   {0}};
	struct runner runner = {.notes = NOTES, .threads = 4};

	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;)
		switch (option) {
		case 's':
			runner.subtype = optarg;
			break;
		case 'o':
			runner.only = optarg;
			break;
		case 't':
			runner.threads = (unsigned)atoi(optarg);
			break;
		case 'n':
			runner.notes = optarg;
			break;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	if (!runner.threads || optind < argc) {
		usage(stderr);
		return 2;
	}
	if (mkdir(runner.notes, 0700) < 0 && errno != EEXIST)
		perror(runner.notes);
	/* Its own memory must not be written back through the disk that it serves. */
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		perror("sealsvc-tcmu: PR_SET_IO_FLUSHER");
	return run(&runner);
}
