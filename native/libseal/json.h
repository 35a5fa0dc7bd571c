/* Just enough JSON to read the service's answers: bounded, without allocation, and strict about what
 * it looks at. Nothing here reads beyond `end`. */
#ifndef LIBSEAL_JSON_H
#define LIBSEAL_JSON_H

#include <stddef.h>
#include <stdint.h>

/* The text of one value. */
struct json {
	const char *at, *end;
};

/* The member of an object, found by a path such as "result.seal.id". 0, or -ENOENT, -EBADMSG. */
int json_find(struct json text, const char *path, struct json *out);
/* A string without its quotes and escapes, cut to the room. 0 or -EBADMSG. */
int json_string(struct json value, char *out, size_t room);
/* 0, or -EBADMSG: it is not a natural number below 2^64. */
int json_number(struct json value, uint64_t *out);
/* Calls `each` for every member of an object; names are as they stand. 0 or -EBADMSG. */
int json_each(struct json object, void (*each)(void *context, struct json name, struct json value),
	      void *context);

/* Appends to a text of at most `room` bytes; `*used` beyond it means that it did not fit. */
struct json_text {
	char *out;
	size_t room, used;
};
void json_put(struct json_text *text, const char *raw);
void json_put_string(struct json_text *text, const char *string);
void json_put_number(struct json_text *text, uint64_t number);
/* Nanoseconds as seconds with nine decimals, and a point before them in every locale (printf has that of
 * LC_NUMERIC). */
void json_put_seconds(struct json_text *text, uint64_t ns);

#endif
