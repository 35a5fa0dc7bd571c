#include "json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DEPTH_MAX 64

static void skip_space(struct json *text)
{
	while (text->at < text->end && strchr(" \t\r\n", *text->at) && *text->at)
		text->at++;
}

static int take(struct json *text, char c)
{
	skip_space(text);
	if (text->at >= text->end || *text->at != c)
		return 0;
	text->at++;
	return 1;
}

/* At a quote: past the string, whose inside is stored. */
static int skip_string(struct json *text, struct json *inside)
{
	if (!take(text, '"'))
		return -EBADMSG;
	inside->at = text->at;
	while (text->at < text->end && *text->at != '"') {
		if (*text->at == '\\')
			text->at++;
		text->at++;
	}
	if (text->at >= text->end)
		return -EBADMSG;
	inside->end = text->at++;
	return 0;
}

/* Past one value. Brackets are counted, not matched: the service writes them right. */
static int skip_value(struct json *text)
{
	struct json inside;
	int depth = 0;

	do {
		skip_space(text);
		if (text->at >= text->end)
			return -EBADMSG;
		switch (*text->at) {
		case '"':
			if (skip_string(text, &inside) < 0)
				return -EBADMSG;
			break;
		case '{':
		case '[':
			if (++depth > DEPTH_MAX)
				return -EBADMSG;
			text->at++;
			break;
		case '}':
		case ']':
			if (--depth < 0)
				return -EBADMSG;
			text->at++;
			break;
		case ',':
		case ':':
			if (!depth)
				return -EBADMSG;
			text->at++;
			break;
		default:
			while (text->at < text->end && !strchr(" \t\r\n{}[],:\"", *text->at))
				text->at++;
			/* A NUL is found by strchr, and is no value. */
			if (text->at < text->end && !*text->at)
				return -EBADMSG;
		}
	} while (depth);
	return 0;
}

int json_each(struct json object, void (*each)(void *context, struct json name, struct json value),
	      void *context)
{
	if (!take(&object, '{'))
		return -EBADMSG;
	if (take(&object, '}'))
		return 0;
	do {
		struct json name, value;

		skip_space(&object);
		if (skip_string(&object, &name) < 0 || !take(&object, ':'))
			return -EBADMSG;
		skip_space(&object);
		value.at = object.at;
		if (skip_value(&object) < 0)
			return -EBADMSG;
		value.end = object.at;
		each(context, name, value);
	} while (take(&object, ','));
	return take(&object, '}') ? 0 : -EBADMSG;
}

struct wanted {
	const char *name;
	size_t length;
	struct json found;
};

static void compare(void *context, struct json name, struct json value)
{
	struct wanted *wanted = context;

	if ((size_t)(name.end - name.at) == wanted->length &&
	    memcmp(name.at, wanted->name, wanted->length) == 0)
		wanted->found = value;
}

int json_find(struct json text, const char *path, struct json *out)
{
	while (*path) {
		struct wanted wanted = {.name = path, .length = strcspn(path, ".")};

		if (json_each(text, compare, &wanted) < 0)
			return -EBADMSG;
		if (!wanted.found.at)
			return -ENOENT;
		text = wanted.found;
		path += wanted.length;
		path += *path == '.';
	}
	*out = text;
	return 0;
}

static char unescaped(char c)
{
	switch (c) {
	case 'n':
		return '\n';
	case 't':
		return '\t';
	case 'u': /* its digits follow, and are kept */
		return '?';
	}
	return c;
}

int json_string(struct json value, char *out, size_t room)
{
	struct json inside;
	size_t used = 0;

	if (!room || skip_string(&value, &inside) < 0)
		return -EBADMSG;
	for (; inside.at < inside.end && used + 1 < room; inside.at++) {
		if (*inside.at == '\\' && inside.at + 1 < inside.end)
			out[used++] = unescaped(*++inside.at);
		else
			out[used++] = *inside.at;
	}
	out[used] = '\0';
	return 0;
}

int json_number(struct json value, uint64_t *out)
{
	uint64_t number = 0;

	if (value.at >= value.end)
		return -EBADMSG;
	for (; value.at < value.end; value.at++) {
		unsigned digit = (unsigned)*value.at - '0';

		if (digit > 9 || number > (UINT64_MAX - digit) / 10)
			return -EBADMSG;
		number = number * 10 + digit;
	}
	*out = number;
	return 0;
}

static void put_char(struct json_text *text, char c)
{
	if (text->used < text->room)
		text->out[text->used] = c;
	text->used++;
}

void json_put(struct json_text *text, const char *raw)
{
	while (*raw)
		put_char(text, *raw++);
}

void json_put_string(struct json_text *text, const char *string)
{
	put_char(text, '"');
	for (; *string; string++) {
		unsigned char c = (unsigned char)*string;
		char escape[8];

		if (c == '"' || c == '\\') {
			put_char(text, '\\');
			put_char(text, (char)c);
		} else if (c < 0x20) {
			snprintf(escape, sizeof(escape), "\\u%04x", c);
			json_put(text, escape);
		} else {
			put_char(text, (char)c);
		}
	}
	put_char(text, '"');
}

void json_put_number(struct json_text *text, uint64_t number)
{
	char digits[24];

	snprintf(digits, sizeof(digits), "%llu", (unsigned long long)number);
	json_put(text, digits);
}

void json_put_seconds(struct json_text *text, uint64_t ns)
{
	char decimals[12];

	snprintf(decimals, sizeof(decimals), ".%09u", (unsigned)(ns % 1000000000));
	json_put_number(text, ns / 1000000000);
	json_put(text, decimals);
}
