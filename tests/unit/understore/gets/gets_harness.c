/* Drives the direct GETs against a server that answers oddly, for `test_gets_sanitized.py`; built with sanitizers.
 *
 *   gets_harness race HOST SEED SECONDS DIRECTORY   threads with batches, of which some are abandoned
 *   gets_harness fuzz SEED COUNT                    heads of answers with something wrong, and keys of any bytes
 *   gets_harness bodies                             which memory is used again
 *
 * A key says how the server answers it ("good-7-3000": object 7, of 3000 bytes, which count up from 7). What ends as done
 * must be that object, in memory, in its file and by its checksums; what ends otherwise must have left no file. Some requests
 * are for parts of such an object, some for descriptions, and some for listings, whose queries end with such a key.
 */
#include "gets.h"

#include <xxhash.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREADS 4
#define MOST 10

static const char *const good[] = { "good", "whole", "meta", "interim", "gzipped" };
static const char *const bad[] = {
	"short", "less", "chunked", "noetag", "weak", "other", "heads", "giant", "cut", "moved", "other-region", "slow", "missing",
	"part", "shifted", "silent", "garbage", "two-lengths", "no-length", "no-date", "empty", "foreign",
};
static const char *const good_parts[] = { "good", "meta", "interim", "gzipped" };
static const char *const bad_parts[] = {
	"whole", "short", "less", "chunked", "noetag", "weak", "other", "heads", "giant", "cut", "moved", "slow", "missing", "shifted",
	"silent", "garbage", "two-lengths", "no-length", "no-date", "empty", "foreign",
};
static const char *const good_listings[] = { "whole", "chunked" };
static const char *const bad_heads[] = {
	"chunked", "noetag", "heads", "giant", "moved", "other-region", "slow", "missing", "silent", "garbage", "two-lengths",
	"no-length", "no-date", "foreign",
};
static const char *const bad_listings[] = { "good", "short", "cut", "moved", "slow", "missing", "silent", "garbage", "empty" };
#define COUNT(a) (sizeof(a) / sizeof *(a))

static unsigned long long seed;
static const char *host, *directory;
static struct target target;
static atomic_bool stop;
static atomic_ullong done, parts, odd, given_up, described, listed;

static void fail(const char *what, const char *key, long long a)
{
	fprintf(stderr, "FAILED (seed %llu): %s: %s %lld\n", seed, what, key, a);
	abort();
}

static unsigned rnd(unsigned *state, unsigned below)
{
	return (unsigned)rand_r(state) % below;
}

static _Thread_local unsigned may_be_kept; /* of the batch */

/* Called by pool.c before a cache file is written. */
void test_pause(const uint8_t *abandoned)
{
	static _Thread_local unsigned state;
	if (!state)
		state = (unsigned)seed + (unsigned)(uintptr_t)&state;
	if (rnd(&state, 16) == 0)
		__atomic_store_n((uint8_t *)abandoned, 1, __ATOMIC_RELEASE);
	may_be_kept += !*abandoned;
}

/* ------------------------------------------------------------------ bodies */

#define IDLE 32u /* pages that are kept */

static void give_back(struct body *b)
{
	bodies_drop(body_give_back(b));
}

static struct body *take(unsigned of_pages)
{
	struct body *b = body_take((size_t)of_pages * PAGE_BYTES - 1);
	if (!b || b->room != (size_t)of_pages * PAGE_BYTES)
		fail("other room than was asked for", "", b ? (long long)b->room : -1);
	return b;
}

static void use_bodies(void)
{
	struct body *many[IDLE + 8];
	give_back(take(2));
	for (unsigned i = 0; i < COUNT(many); i++) {
		many[i] = take(1);
		many[i]->bytes[0] = (char)i;
	}
	for (unsigned i = 0; i < COUNT(many); i++)
		give_back(many[i]);
	struct body *large = take(MOST_PAGES);
	large->bytes[0] = 'x';
	give_back(large);
	large = take(MOST_PAGES);
	if (large->bytes[0] != 'x')
		fail("not used again, as idle ones of another size are in its way", "", 0);
	give_back(large);
	for (unsigned i = 0; i < COUNT(many); i++) {
		many[i] = take(1);
		const unsigned expected = i < IDLE - MOST_PAGES ? (unsigned)COUNT(many) - 1 - i : 0;
		if ((unsigned char)many[i]->bytes[0] != expected)
			fail("not the last one that was given back, or too many are kept", "", i);
	}
	for (unsigned i = 0; i < COUNT(many); i++)
		give_back(many[i]);
	bodies_release();
}

/* ------------------------------------------------------------------ race */

struct expected {
	bool good;
	unsigned number;
	size_t size; /* of the object */
	char name[100]; /* of what is asked for */
	struct body *body;
};

static void check_told(const struct get *g, const struct expected *e)
{
	char etag[40];
	snprintf(etag, sizeof etag, "\"v%u\"", e->number);
	if (g->size != e->size)
		fail("another size", e->name, (long long)g->size);
	if (g->kind == GET_LIST) {
		for (size_t i = 0; i < g->size; i++)
			if ((unsigned char)g->body[i] != ((e->number + i) & 255))
				fail("a wrong byte", e->name, (long long)i);
		atomic_fetch_add(&listed, 1);
		return;
	}
	if (g->modified_s != 1704067200 || strcmp(g->etag, etag))
		fail("another description", e->name, g->modified_s);
	const bool meta = !strncmp(e->name, "meta", 4);
	if (g->metadata_bytes != (meta ? 18 : 0) || (meta && memcmp(g->metadata, "mode\00033188\0me\0you", 18)))
		fail("other metadata", e->name, (long long)g->metadata_bytes);
	atomic_fetch_add(&described, 1);
}

static void check_done(const struct get *g, unsigned number)
{
	for (size_t i = 0; i < g->size; i++)
		if ((unsigned char)g->body[i] != ((number + i) & 255))
			fail("a wrong byte", g->key, (long long)i);
	if (g->kept.pages != (g->size + PAGE_BYTES - 1) / PAGE_BYTES)
		fail("not so many pages", g->key, g->kept.pages);
	for (unsigned page = 0; page < g->kept.pages; page++) {
		const size_t at = (size_t)page * PAGE_BYTES, left = g->size - at;
		if (XXH3_64bits(g->body + at, left < PAGE_BYTES ? left : PAGE_BYTES) != g->kept.sums[page])
			fail("a wrong checksum", g->key, page);
	}
	if (g->modified_s != 1704067200)
		fail("another time", g->key, g->modified_s);
	if (!strncmp(g->key, "meta", 4) && (g->metadata_bytes != 18 || memcmp(g->metadata, "mode\00033188\0me\0you", 18)))
		fail("other metadata", g->key, (long long)g->metadata_bytes);
	if (!g->path)
		return;
	if (g->kept.error || !g->kept.opened)
		fail("no file", g->key, g->kept.error);
	if ((g->kept.fd >= 0) != g->stay_open)
		fail("open or not", g->key, g->kept.fd);
	const int fd = open(g->path, O_RDONLY);
	struct stat st;
	char *content = malloc(g->size);
	if (fd < 0 || fstat(fd, &st) || (size_t)st.st_size != g->size || st.st_ino != g->kept.number)
		fail("another file", g->key, fd);
	if (read(fd, content, g->size) != (ssize_t)g->size || memcmp(content, g->body, g->size))
		fail("another content", g->key, 0);
	if (g->kept.stamp_ns != st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec)
		fail("another mtime", g->key, 0);
	free(content);
	close(fd);
	unlink(g->path);
}

static void check(const struct get *g, const struct expected *e, bool abandoned)
{
	if (g->outcome == GET_DONE) {
		if (!e->good)
			fail("taken for the object", e->name, g->status);
		if (g->kind != GET_WHOLE && g->kind != GET_PART) {
			check_told(g, e);
			return;
		}
		check_done(g, e->number + (unsigned)g->start);
		if (g->kind == GET_PART && g->total != e->size)
			fail("of another object", e->name, (long long)g->total);
		atomic_fetch_add(g->kind == GET_PART ? &parts : &done, 1);
		return;
	}
	if (g->path && !access(g->path, F_OK))
		fail("a file that is not recorded", e->name, g->outcome);
	if (g->outcome == GET_ABANDONED) {
		if (!abandoned)
			fail("abandoned for nothing", e->name, 0);
		atomic_fetch_add(&given_up, 1);
	} else if (e->good) {
		fail("not had", e->name, g->kind * 100000 + g->outcome * 10000 + g->status * 100 + g->code);
	} else {
		atomic_fetch_add(&odd, 1);
	}
}

#define ONE_OF(names) names[rnd(state, COUNT(names))]

static const char *name_of(enum kind kind, bool is_good, unsigned *state)
{
	if (kind == GET_LIST)
		return is_good ? ONE_OF(good_listings) : ONE_OF(bad_listings);
	if (kind == GET_PART)
		return is_good ? ONE_OF(good_parts) : ONE_OF(bad_parts);
	return is_good ? ONE_OF(good) : kind == GET_HEAD ? ONE_OF(bad_heads) : ONE_OF(bad);
}

static void make(struct get *g, struct expected *e, unsigned *state, unsigned thread, unsigned i)
{
	static const unsigned sizes[] = { 1, 100, 4096, 70000, 102400, 1048576, 1048577, 2097152 };
	char text[400];
	static const enum kind kinds[] = { GET_HEAD, GET_LIST, GET_PART, GET_PART, GET_WHOLE, GET_WHOLE };
	*e = (struct expected){ .good = rnd(state, 3) > 0, .number = rnd(state, 1000), .size = ONE_OF(sizes) };
	*g = (struct get){ .kind = ONE_OF(kinds), .kept.fd = -1 };
	snprintf(e->name, sizeof e->name, "%s-%u-%zu", name_of(g->kind, e->good, state), e->number, e->size);
	if (g->kind == GET_LIST) {
		snprintf(text, sizeof text, "delimiter=%%2F&prefix=%s", e->name);
		g->query = strdup(text);
		g->key = strdup("");
		return;
	}
	snprintf(text, sizeof text, "%s%s", e->name, g->kind == GET_HEAD && rnd(state, 2) ? "//" : "");
	g->key = strdup(text);
	if (g->kind == GET_HEAD)
		return;
	g->size = e->size;
	snprintf(text, sizeof text, "\"v%u\"", e->number);
	g->version = strdup(text);
	if (g->kind == GET_PART) {
		g->start = rnd(state, (unsigned)e->size);
		g->size = 1 + rnd(state, (unsigned)(e->size - g->start));
		e->body = body_take(g->size);
		g->body = e->body->bytes;
		return;
	}
	g->stay_open = rnd(state, 2);
	snprintf(text, sizeof text, "%s/%u-%u/file", directory, thread, i);
	g->path = rnd(state, 8) ? strdup(text) : NULL;
	g->body = malloc(g->size);
}

static struct pool *pool;

static void *batches(void *arg)
{
	const unsigned thread = (unsigned)(uintptr_t)arg;
	unsigned state = (unsigned)seed * 31 + thread;
	const struct credentials ways[] = { { .access = "key", .secret = "secret", .token = "token" }, { 0 },
					    { .query = "sig=a%2Fb", .lines = { "Authorization: Bearer t", "x-v: 1" } } };
	while (!atomic_load(&stop)) {
		struct get gets[MOST];
		struct expected expected[MOST];
		const unsigned count = 1 + rnd(&state, MOST);
		uint8_t abandoned = 0;
		for (unsigned i = 0; i < count; i++)
			make(&gets[i], &expected[i], &state, thread, i);
		may_be_kept = 0;
		if (!pool_get(pool, &ways[rnd(&state, COUNT(ways))], gets, count, &abandoned))
			fail("no memory", "", 0);
		for (unsigned i = 0; i < count; i++) {
			may_be_kept -= gets[i].body && gets[i].kind <= GET_PART && gets[i].outcome == GET_DONE;
			check(&gets[i], &expected[i], __atomic_load_n(&abandoned, __ATOMIC_ACQUIRE));
			if (gets[i].kept.fd >= 0)
				close(gets[i].kept.fd);
			if (expected[i].body)
				give_back(expected[i].body);
			else
				free(gets[i].body);
			free(gets[i].metadata);
			free((char *)gets[i].key);
			free((char *)gets[i].version);
			free((char *)gets[i].path);
			free((char *)gets[i].query);
		}
		if (rnd(&state, 50) == 0)
			bodies_release();
		if (may_be_kept)
			fail("kept after it was given up", "", (int)may_be_kept);
	}
	return NULL;
}

static void race(unsigned seconds)
{
	char url[200];
	pthread_t threads[THREADS];
	snprintf(url, sizeof url, "http://%s/bucket", host);
	target = (struct target){ url, "/bucket", host, "us-east-1", "If-Match", "etag", "x-amz-meta-", "test", "/dev/null",
				   5000, 20000, 5, 12 };
	pool = pool_open(&target);
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, batches, (void *)i);
	sleep(seconds);
	for (unsigned i = 0; i < 60 && !(done && parts && odd && given_up && described && listed); i++)
		sleep(1); /* on a busy machine */
	atomic_store(&stop, true);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	pool_close(pool);
	bodies_release();
	printf("done %llu parts %llu odd %llu abandoned %llu described %llu listed %llu\n", done, parts, odd, given_up, described,
	       listed);
}

/* ------------------------------------------------------------------ fuzz */

static void fuzz_answer(unsigned *state)
{
	static const char *const lines[] = {
		"HTTP/1.1 200 OK", "HTTP/1.1 206 Partial Content", "HTTP/1.1 404 Not Found", "ETag: \"v\"", "ETag: W/\"v\"",
		"Content-Length: 100", "Content-Length: 99", "Content-Range: bytes 0-99/100", "Content-Range: bytes 1-99/100",
		"Content-Range: bytes 7-106/500", "Content-Range: bytes 7-106/106", "Content-Range: bytes 7-106",
		"Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT", "x-amz-meta-a: b", "x-amz-meta-: b", "X-Amz-Meta-Mode:\t 33188 ",
		"Transfer-Encoding: chunked", ": none", "no colon", " folded: line", "", "ETag:", "Content-Length: ",
	};
	static const struct target t = { .version = "etag", .metadata = "x-amz-meta-" };
	struct answer a = { .target = &t };
	answer_begin(&a);
	for (unsigned n = rnd(state, 24); n; n--) {
		char line[9000];
		size_t length = (size_t)snprintf(line, sizeof line, "%s", lines[rnd(state, COUNT(lines))]);
		if (rnd(state, 12) == 0) {
			length = rnd(state, sizeof line);
			for (size_t i = 0; i < length; i++)
				line[i] = (char)rnd(state, 256);
			if (length > 12 && rnd(state, 2))
				memcpy(line, "x-amz-meta-a:", 13);
		} else if (length && rnd(state, 6) == 0) {
			line[rnd(state, (unsigned)length)] = (char)rnd(state, 256);
		}
		char *exact = malloc(length + 1); /* so that a read beyond its end is noticed */
		memcpy(exact, line, length);
		answer_line(&a, exact, length);
		free(exact);
	}
	if (answer_fits(&a, "\"v\"", 100) && !((a.status == 200 || a.status == 206) && a.length == 100 && !strcmp(a.etag, "\"v\"")))
		fail("fits, but does not", a.etag, a.status);
	if (answer_has_part(&a, "\"v\"", 7, 100) &&
	    !(a.status == 206 && a.first == 7 && a.last == 106 && a.total > 106 && a.length == 100 && !strcmp(a.etag, "\"v\"")))
		fail("has the part, but has not", a.etag, a.status);
	if (answer_describes(&a) && !(a.status == 200 && a.has_length && a.modified_s >= 0 && a.etag[0]))
		fail("describes nothing", a.etag, a.status);
	if (a.metadata_bytes > sizeof a.metadata)
		fail("too much metadata", "", (long long)a.metadata_bytes);
}

static void fuzz_key(unsigned *state)
{
	const struct credentials c = { .access = "key", .secret = "secret", .token = rnd(state, 2) ? "token" : NULL };
	const struct target t = { .url = "http://h:1/b", .path = "/b", .host = "h:1", .region = "r", .condition = "If-Match" };
	struct signer signer;
	struct request *r = malloc(sizeof *r);
	const size_t length = 1 + rnd(state, rnd(state, 50) ? 1100 : 20000);
	char *key = malloc(length + 1);
	for (size_t i = 0; i < length; i++)
		key[i] = (char)(1 + rnd(state, 255));
	key[length] = 0;
	if (!signer_begin(&signer, &t, &c, 1700000000))
		fail("no signer", "", 0);
	const struct get g = { .key = key, .version = rnd(state, 2) ? "\"v\"" : NULL, .size = 100,
			       .kind = rnd(state, 2) ? GET_HEAD : GET_WHOLE };
	if (signer_sign(&signer, r, &g)) {
		const char *at = r->url + strlen("http://h:1/b/");
		for (size_t i = 0; i < length; i++) {
			unsigned byte = (unsigned char)*at++;
			if (byte == '%') {
				if (sscanf(at, "%2X", &byte) != 1)
					fail("no two digits", at, (long long)i);
				at += 2;
			}
			if (byte != (unsigned char)key[i])
				fail("another key", "", (long long)i);
		}
		if (*at)
			fail("more than the key", at, 0);
	} else if (length <= 1100) {
		fail("a key that has to be possible", "", (long long)length);
	}
	free(key);
	free(r);
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "race")) {
		curl_global_init(CURL_GLOBAL_DEFAULT);
		host = argv[2];
		seed = strtoull(argv[3], NULL, 10);
		directory = argv[5];
		race((unsigned)atoi(argv[4]));
		curl_global_cleanup();
		return 0;
	}
	if (argc == 4 && !strcmp(argv[1], "fuzz")) {
		seed = strtoull(argv[2], NULL, 10);
		unsigned state = (unsigned)seed;
		for (int i = atoi(argv[3]); i; i--) {
			fuzz_answer(&state);
			fuzz_key(&state);
		}
		return 0;
	}
	if (argc == 2 && !strcmp(argv[1], "bodies")) {
		use_bodies();
		return 0;
	}
	fprintf(stderr, "see the head of the source\n");
	return 2;
}
