/* The head of an answer: its lines are taken one by one, and then it is asked whether that is the object, or the part of it.
 *
 * Only the plainest answer is: all of it as a range, or without one, or the very range of the part; the very version that was
 * asked for, the right length, not in pieces, a time of the last change, and user metadata in ASCII. A server may have
 * reasons for anything else, but then it is the other client that has to understand it. A description, the answer to a HEAD, is judged in the same way.
 */
#include "gets.h"

#include <string.h>
#include <strings.h>

void answer_begin(struct answer *a)
{
	a->status = 0;
	a->odd = a->has_length = a->has_range = false;
	a->length = a->first = a->last = a->total = 0;
	a->modified_s = -1;
	a->etag[0] = 0;
	a->metadata_bytes = 0;
}

static bool is(const char *name, size_t length, const char *wanted)
{
	return length == strlen(wanted) && !strncasecmp(name, wanted, length);
}

static bool printable(const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if ((text[i] < 32 && text[i] != '\t') || text[i] > 126)
			return false;
	return true;
}

/* Take a number off the front of a text; false: there is none, or it is too long. */
static bool take_number(const char **at, const char *end, uint64_t *number)
{
	const char *begin = *at;
	for (*number = 0; *at < end && **at >= '0' && **at <= '9'; ++*at) {
		if (*at - begin == 18)
			return false;
		*number = *number * 10 + (uint64_t)(**at - '0');
	}
	return *at > begin;
}

static void take_length(struct answer *a, const char *value, const char *end)
{
	uint64_t number;
	if (!take_number(&value, end, &number) || value != end || (a->has_length && a->length != number))
		a->odd = true;
	a->has_length = true;
	a->length = number;
}

static void take_range(struct answer *a, const char *value, const char *end)
{
	static const char begin[] = "bytes ";
	const size_t length = sizeof begin - 1;
	if (a->has_range || (size_t)(end - value) < length || memcmp(value, begin, length)) {
		a->odd = true;
		return;
	}
	value += length;
	a->has_range = take_number(&value, end, &a->first) && value < end && *value++ == '-' &&
		       take_number(&value, end, &a->last) && value < end && *value++ == '/' &&
		       take_number(&value, end, &a->total) && value == end;
	if (!a->has_range)
		a->odd = true;
}

static void take_metadata(struct answer *a, const char *name, size_t name_length, const char *value, size_t length)
{
	if (name_length + length + 2 > sizeof a->metadata - a->metadata_bytes) {
		a->odd = true;
		return;
	}
	char *at = a->metadata + a->metadata_bytes;
	for (size_t i = 0; i < name_length; i++)
		at[i] = name[i] >= 'A' && name[i] <= 'Z' ? (char)(name[i] | 32) : name[i];
	at[name_length] = 0;
	at += name_length + 1;
	memcpy(at, value, length);
	at[length] = 0;
	a->metadata_bytes += name_length + length + 2;
}

static void take_status(struct answer *a, const char *line, size_t length)
{
	const char *blank = memchr(line, ' ', length);
	answer_begin(a); /* what came before was of an interim answer */
	if (!blank || line + length - blank < 4)
		a->odd = true;
	for (int i = 1; i <= 3 && !a->odd; i++) {
		if (blank[i] < '0' || blank[i] > '9')
			a->odd = true;
		a->status = a->status * 10 + (unsigned)(blank[i] - '0');
	}
}

static void take_time(struct answer *a, const char *value, size_t length)
{
	char text[64];
	if (length >= sizeof text) {
		a->odd = true;
		return;
	}
	memcpy(text, value, length);
	text[length] = 0;
	a->modified_s = curl_getdate(text, NULL);
}

void answer_line(struct answer *a, const char *line, size_t length)
{
	const char *prefix = a->target->metadata;
	const size_t prefix_length = strlen(prefix);
	while (length && (line[length - 1] == '\r' || line[length - 1] == '\n'))
		length--;
	if (length >= 5 && !memcmp(line, "HTTP/", 5)) {
		take_status(a, line, length);
		return;
	}
	if (!length)
		return;
	const char *colon = memchr(line, ':', length);
	if (!colon || line[0] == ' ' || line[0] == '\t') { /* a continued line is obsolete */
		a->odd = true;
		return;
	}
	const size_t name_length = (size_t)(colon - line);
	const char *value = colon + 1, *end = line + length;
	while (value < end && (*value == ' ' || *value == '\t'))
		value++;
	while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	const size_t value_length = (size_t)(end - value);
	if (is(line, name_length, "content-length")) {
		take_length(a, value, end);
	} else if (is(line, name_length, a->target->version)) {
		if (a->etag[0] || !value_length || value_length >= sizeof a->etag || !printable(value, value_length)) {
			a->odd = true;
			return;
		}
		memcpy(a->etag, value, value_length);
		a->etag[value_length] = 0;
	} else if (is(line, name_length, "last-modified")) {
		take_time(a, value, value_length);
	} else if (is(line, name_length, "content-range")) {
		take_range(a, value, end);
	} else if (is(line, name_length, "transfer-encoding")) {
		a->odd = true;
	} else if (name_length > prefix_length && !strncasecmp(line, prefix, prefix_length)) {
		const char *name = line + prefix_length;
		if (printable(name, name_length - prefix_length) && printable(value, value_length))
			take_metadata(a, name, name_length - prefix_length, value, value_length);
		else
			a->odd = true;
	}
}

static bool is_body_of(const struct answer *a, const char *version, size_t size)
{
	return !a->odd && a->has_length && a->length == size && a->modified_s >= 0 && !strcmp(a->etag, version);
}

bool answer_fits(const struct answer *a, const char *version, size_t size)
{
	if (a->has_range)
		return a->total == size && answer_has_part(a, version, 0, size);
	return a->status == 200 && is_body_of(a, version, size);
}

bool answer_has_part(const struct answer *a, const char *version, uint64_t start, size_t size)
{
	return a->status == 206 && a->has_range && a->first == start && a->last == start + size - 1 && a->total > a->last &&
	       is_body_of(a, version, size);
}

bool answer_describes(const struct answer *a)
{
	return a->status == 200 && !a->odd && a->has_length && !a->has_range && a->modified_s >= 0 && a->etag[0];
}
