/* The address and headers of a request, with an AWS Signature Version 4 where there are keys for one, as for S3.
 *
 * A key's bytes are percent-encoded, all but the unreserved ones and "/", and the same path is signed and sent: libcurl is
 * told to leave it as it is. Of the headers, Host, If-Match and those of AWS are signed. The range is that of the whole object:
 * of a larger one, sent by a server that ignores conditions, no more comes than there is room for. These have no body,
 * so its hash is a constant. A listing is asked of the bucket itself; its query comes as it is to be signed. The signing key of
 * the day is derived for each batch: four HMACs, a few microseconds; so nothing that is secret is kept.
 *
 * Of a request of any kind all the headers that are said are signed, in the order of their names; the hash of its body comes
 * with it.
 *
 * Headers and the query that a batch brings along (a token, say) are sent as they are, for stores that want no signature.
 *
 * Text is written into the request's own memory by `put`; what does not fit is told by an empty answer, not cut off.
 */
#include "gets.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EMPTY_HASH "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

struct text {
	char *at, *end;
	bool full;
};

static void put(struct text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(struct text *t, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	const size_t room = (size_t)(t->end - t->at);
	const int n = vsnprintf(t->at, room, format, arguments);
	va_end(arguments);
	if (n < 0 || (size_t)n >= room)
		t->full = true;
	else
		t->at += n;
}

static void put_encoded(struct text *t, const char *path)
{
	static const char hex[] = "0123456789ABCDEF";
	for (const unsigned char *c = (const unsigned char *)path; *c; c++) {
		if (t->end - t->at < 4) {
			t->full = true;
			return;
		}
		const bool letter = (*c | 32) >= 'a' && (*c | 32) <= 'z', digit = *c >= '0' && *c <= '9';
		if (letter || digit || strchr("-_.~/", *c)) {
			*t->at++ = (char)*c;
		} else {
			*t->at++ = '%';
			*t->at++ = hex[*c >> 4];
			*t->at++ = hex[*c & 15];
		}
	}
	*t->at = 0;
}

static void put_hex(struct text *t, const unsigned char *bytes, size_t size)
{
	if ((size_t)(t->end - t->at) <= 2 * size) {
		t->full = true;
		return;
	}
	for (size_t i = 0; i < size; i++) {
		*t->at++ = "0123456789abcdef"[bytes[i] >> 4];
		*t->at++ = "0123456789abcdef"[bytes[i] & 15];
	}
	*t->at = 0;
}

/* Begin a new text behind the last one, which ends here. */
static char *next(struct text *t)
{
	if (t->end - t->at < 2) {
		t->full = true;
		return t->at;
	}
	*t->at++ = 0;
	*t->at = 0;
	return t->at;
}

static bool hmac(unsigned char *result, const void *key, size_t size, const char *said, size_t length)
{
	unsigned n = 32;
	return HMAC(EVP_sha256(), key, (int)size, (const unsigned char *)said, length, result, &n) != NULL;
}

bool signer_begin(struct signer *s, const struct target *t, const struct credentials *c, time_t now)
{
	*s = (struct signer){ .target = t, .credentials = c };
	struct tm utc;
	if (!gmtime_r(&now, &utc) || !strftime(s->stamp, sizeof s->stamp, "%Y%m%dT%H%M%SZ", &utc) ||
	    !strftime(s->day, sizeof s->day, "%Y%m%d", &utc))
		return false;
	if (!c->access)
		return true;
	char secret[512];
	const int size = snprintf(secret, sizeof secret, "AWS4%s", c->secret);
	bool done = size > 0 && (size_t)size < sizeof secret;
	done = done && hmac(s->key, secret, (size_t)size, s->day, strlen(s->day));
	OPENSSL_cleanse(secret, sizeof secret);
	unsigned char *k = s->key;
	return done && hmac(k, k, 32, t->region, strlen(t->region)) && hmac(k, k, 32, "s3", 2) &&
	       hmac(k, k, 32, "aws4_request", 12);
}

/* Write "Authorization: ..." at the end of the text, of a request that `canonical` describes with its signed headers. */
static bool put_signature(const struct signer *s, struct text *t, const struct text *canonical, const char *begin,
			  const char *names)
{
	const struct credentials *c = s->credentials;
	char said[512];
	unsigned char digest[32];
	unsigned n = sizeof digest;
	if (canonical->full || !EVP_Digest(begin, (size_t)(canonical->at - begin), digest, &n, EVP_sha256(), NULL))
		return false;
	struct text all = { said, said + sizeof said, false };
	put(&all, "AWS4-HMAC-SHA256\n%s\n%s/%s/s3/aws4_request\n", s->stamp, s->day, s->target->region);
	put_hex(&all, digest, sizeof digest);
	if (all.full || !hmac(digest, s->key, sizeof s->key, said, (size_t)(all.at - said)))
		return false;
	put(t, "Authorization: AWS4-HMAC-SHA256 Credential=%s/%s/%s/s3/aws4_request, SignedHeaders=%s, Signature=", c->access,
	    s->day, s->target->region, names);
	put_hex(t, digest, sizeof digest);
	return true;
}

static bool authorize(const struct signer *s, struct text *t, const struct get *g, const char *path)
{
	const struct credentials *c = s->credentials;
	const char *condition = g->version ? "if-match;" : "", *token = c->token ? ";x-amz-security-token" : "";
	const char *query = g->query ? g->query : "";
	const size_t length = strlen(path) - (g->query ? strlen(query) + 1 : 0);
	char said[REQUEST_BYTES], names[100];
	snprintf(names, sizeof names, "host;%sx-amz-content-sha256;x-amz-date%s", condition, token);
	struct text all = { said, said + sizeof said, false };
	put(&all, "%s\n%.*s\n%s\nhost:%s\n", g->kind == GET_HEAD ? "HEAD" : "GET", (int)length, path, query, s->target->host);
	if (g->version)
		put(&all, "if-match:%s\n", g->version);
	put(&all, "x-amz-content-sha256:" EMPTY_HASH "\nx-amz-date:%s\n", s->stamp);
	if (c->token)
		put(&all, "x-amz-security-token:%s\n", c->token);
	put(&all, "\n%s\n" EMPTY_HASH, names);
	return put_signature(s, t, &all, said, names);
}

static void add_header(struct request *r, unsigned *count, char *line)
{
	r->headers[*count] = (struct curl_slist){ line, NULL };
	if (*count)
		r->headers[*count - 1].next = &r->headers[*count];
	++*count;
}

/* Write the address of what is asked for. */
static void put_url(struct text *t, const struct signer *s, const struct get *g)
{
	const struct target *target = s->target;
	put(t, "%s", target->url);
	if (*g->key || !*target->path) { /* the bucket's own path has no "/" at its end, but is not empty */
		put(t, "/");
		put_encoded(t, g->key);
	}
	if (g->query)
		put(t, "?%s", g->query);
	if (s->credentials->query)
		put(t, "%c%s", g->query ? '&' : '?', s->credentials->query);
}

bool signer_sign(const struct signer *s, struct request *r, const struct get *g)
{
	struct text t = { r->text, r->text + sizeof r->text, false };
	unsigned count = 0;
	r->url = t.at;
	put_url(&t, s, g);
	const char *path = r->url + strlen(s->target->url) - strlen(s->target->path);
	char *line = next(&t);
	put(&t, "Host: %s", s->target->host);
	add_header(r, &count, line);
	if (g->version) {
		line = next(&t);
		put(&t, "%s: %s", s->target->condition, g->version);
		add_header(r, &count, line);
		line = next(&t);
		put(&t, "Range: bytes=%" PRIu64 "-%" PRIu64, g->start, g->start + g->size - 1);
		add_header(r, &count, line);
	}
	for (const char *const *each = s->credentials->lines; *each; each++) {
		line = next(&t);
		put(&t, "%s", *each);
		add_header(r, &count, line);
	}
	if (s->credentials->access) {
		line = next(&t);
		put(&t, "x-amz-content-sha256: " EMPTY_HASH);
		add_header(r, &count, line);
		line = next(&t);
		put(&t, "x-amz-date: %s", s->stamp);
		add_header(r, &count, line);
		if (s->credentials->token) {
			line = next(&t);
			put(&t, "x-amz-security-token: %s", s->credentials->token);
			add_header(r, &count, line);
		}
		line = next(&t);
		if (t.full || !authorize(s, &t, g, path))
			return false;
		add_header(r, &count, line);
	}
	return !t.full;
}

/* ------------------------------------------------------------------ requests of any kind */

static size_t name_of(const char *line)
{
	return strcspn(line, ":");
}

static int by_name(const void *one, const void *other)
{
	const char *a = *(char *const *)one, *b = *(char *const *)other;
	const size_t m = name_of(a), n = name_of(b);
	const int order = memcmp(a, b, m < n ? m : n);
	return order ? order : (m > n) - (m < n);
}

/* Sign the `count` lines, which are "name: value". */
static bool authorize_any(const struct signer *s, struct text *t, const struct get *g, const char *path, char **lines,
			  unsigned count)
{
	char said[REQUEST_BYTES], names[2048];
	const char *query = g->query ? g->query : "";
	const size_t length = strlen(path) - (g->query ? strlen(query) + 1 : 0);
	struct text all = { said, said + sizeof said, false }, signing = { names, names + sizeof names, false };
	qsort(lines, count, sizeof *lines, by_name);
	put(&all, "%s\n%.*s\n%s\n", g->said->method, (int)length, path, query);
	for (unsigned i = 0; i < count; i++) {
		const size_t name = name_of(lines[i]);
		put(&all, "%.*s:%s\n", (int)name, lines[i], lines[i] + name + 2);
		put(&signing, "%s%.*s", i ? ";" : "", (int)name, lines[i]);
	}
	put(&all, "\n%s\n%s", names, g->said->hash);
	return !signing.full && put_signature(s, t, &all, said, names);
}

bool signer_sign_any(const struct signer *s, struct request *r, const struct get *g)
{
	const struct credentials *c = s->credentials;
	struct text t = { r->text, r->text + sizeof r->text, false };
	char *lines[HEADERS];
	unsigned count = 0;
	r->url = t.at;
	put_url(&t, s, g);
	const char *path = r->url + strlen(s->target->url) - strlen(s->target->path);
#define LINE(...) (lines[count] = next(&t), count++, put(&t, __VA_ARGS__))
	LINE("host: %s", s->target->host);
	if (c->access) {
		LINE("x-amz-content-sha256: %s", g->said->hash);
		LINE("x-amz-date: %s", s->stamp);
		if (c->token)
			LINE("x-amz-security-token: %s", c->token);
	}
	for (const char *const *each = g->said->lines; *each; each++) {
		if (count == HEADERS - 3)
			return false;
		LINE("%s", *each);
	}
	const unsigned signed_ones = count;
	LINE("Expect:"); /* none: it would cost a round trip */
	bool typed = false;
	for (unsigned i = 0; i < signed_ones; i++)
		typed = typed || !strncmp(lines[i], "content-type:", 13);
	if (!typed)
		LINE("Content-Type:"); /* none, rather than libcurl's */
#undef LINE
	unsigned linked = 0;
	for (unsigned i = 0; i < count; i++)
		add_header(r, &linked, lines[i]);
	char *line = next(&t);
	if (t.full || (c->access && !authorize_any(s, &t, g, path, lines, signed_ones)))
		return false;
	if (c->access)
		add_header(r, &linked, line);
	return !t.full;
}
