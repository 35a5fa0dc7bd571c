/* libseal's reading of the service's answers, from any bytes; and its writing of any string, which has to
 * be read back as it was. */
#include <stdlib.h>
#include <string.h>

#include "json.h"

static void look(void *context, struct json name, struct json value)
{
	const struct json *all = context;

	if (name.at < all->at || name.end > all->end || value.at > value.end ||
	    value.end > all->end)
		__builtin_trap();
}

static void write_and_read(const char *text)
{
	char written[8192], read[1024];
	struct json_text out = {written, sizeof(written), 0};
	struct json value;

	json_put(&out, "{\"a\":");
	json_put_string(&out, text);
	json_put(&out, "}");
	if (out.used > out.room)
		return;
	value = (struct json){written, written + out.used};
	if (json_find(value, "a", &value) < 0 || json_string(value, read, sizeof(read)) < 0)
		__builtin_trap();
	for (const char *c = text; *c; c++)
		if ((unsigned char)*c < 0x20)
			return; /* escapes of controls are not undone */
	if (strlen(text) < sizeof(read) && strcmp(text, read) != 0)
		__builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const paths[] = {"id", "reply", "result.seal.id", "result.files",
					    "code"};
	char *copy = malloc(size + 1), out[32];
	struct json text = {copy, copy + size}, value;
	uint64_t number;

	/* Of exactly this size on the heap: a byte too far is found. */
	memcpy(copy, data, size);
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		if (json_find(text, paths[i], &value) == 0) {
			json_string(value, out, sizeof(out));
			json_number(value, &number);
			json_each(value, look, &text);
		}
	copy[size] = '\0';
	write_and_read(copy);
	free(copy);
	return 0;
}
