/* What comes of an answer, as libcurl hands it out.
 *
 * A body goes where module.c wants it. The head is judged before the first byte of it: a body of something else is read to
 * its end if it is short, so that the connection can stay, and thrown away. How long a listing gets is not known before:
 * memory for it is had as it comes. A description has no body.
 *
 * The answer to a request of any kind (GET_ANY) is kept with its head, whatever it is.
 */
#include "gets.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_BYTES 65536u /* of a body that is not wanted */
#define LIST_FIRST_BYTES 65536u

/* Keep a line of the head of an answer; the last head counts. */
static bool tell(struct get *g, const char *line, size_t length)
{
	if (!g->metadata && !(g->metadata = malloc(TOLD_BYTES)))
		return false;
	if (length >= 5 && !memcmp(line, "HTTP/", 5))
		g->metadata_bytes = 0;
	if (length > TOLD_BYTES - g->metadata_bytes)
		return false;
	memcpy(g->metadata + g->metadata_bytes, line, length);
	g->metadata_bytes += length;
	return true;
}

size_t receive_line(char *line, size_t one, size_t length, void *arg)
{
	struct slot *s = arg;
	length *= one;
	answer_line(&s->answer, line, length);
	return s->get->kind != GET_ANY || tell(s->get, line, length) ? length : 0;
}

/* Have room for so much of a listing. */
static bool grow(struct get *g, size_t needed)
{
	size_t size = g->size ? g->size : LIST_FIRST_BYTES;
	while (size < needed)
		size *= 2;
	if (size > LIST_BYTES)
		return false;
	char *body = size > g->size ? realloc(g->body, size) : g->body;
	if (!body)
		return false;
	g->body = body;
	g->size = size;
	return true;
}

static bool judge(const struct slot *s)
{
	if (s->get->kind == GET_ANY)
		return true;
	if (s->get->kind == GET_LIST)
		return s->answer.status == 200;
	if (s->get->kind == GET_PART)
		return answer_has_part(&s->answer, s->get->version, s->get->start, s->get->size);
	return s->get->kind == GET_WHOLE && answer_fits(&s->answer, s->get->version, s->get->size);
}

size_t receive_body(char *data, size_t one, size_t length, void *arg)
{
	struct slot *s = arg;
	length *= one;
	if (!s->judged) {
		s->judged = true;
		s->fits = judge(s);
	}
	if (!s->fits) {
		s->received += length;
		return s->received <= SHORT_BYTES ? length : 0;
	}
	if (s->get->kind >= GET_LIST && !grow(s->get, s->received + length))
		return 0;
	if (length > s->get->size - s->received)
		return 0;
	memcpy(s->get->body + s->received, data, length);
	s->received += length;
	return length;
}
