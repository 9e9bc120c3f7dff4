/* Connections to one under-store, and batches of requests on them.
 *
 * A batch is made by the thread that asks for it. It takes a *set* from the pool: a multi handle of libcurl with its easy
 * handles and kept-alive connections, which nobody else uses meanwhile (libcurl cannot share connections between threads),
 * and gives it back at the end. Up to MOST_PARALLEL requests of a batch are under way at once. Over all batches there are
 * no more than `most`, but each may always have one: so the number of threads is what bounds them, as it does elsewhere.
 *
 * The set that was given back last is taken first; so those that are not needed grow old at the end of the list, and go when
 * the idle connections would be more than `most`.
 *
 * A body goes where module.c wants it. The head is judged before the first byte of it: a body of something else is read to
 * its end if it is short, so that the connection can stay, and thrown away. How long a listing gets is not known before:
 * memory for it is had as it comes. A description has no body.
 *
 * A request of any kind (GET_ANY) may send a body, from where Python has it. Its answer is kept with its head, whatever it
 * is. It has no deadline of its own but silence: how long a body takes is the line's matter, and a copy the server's.
 */
#include "gets.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define RECEIVE_BYTES 65536L
#define SHORT_BYTES 65536u /* of a body that is not wanted */
#define LIST_FIRST_BYTES 65536u
#define SEND_BYTES (256L << 10) /* of a body that is sent, at once */
#define LOOK_MS 500	   /* how often it is looked whether anybody still waits */

struct slot { /* one request at a time */
	CURL *easy;
	struct get *get;
	bool judged, fits;
	size_t received;
	struct answer answer;
	struct request request;
};

struct set {
	struct set *next;
	CURLM *multi;
	unsigned widest; /* as many requests were under way at once: there are no more connections */
	struct slot *slots[MOST_PARALLEL];
};

struct pool {
	const struct target *target;
	pthread_mutex_t lock; /* of the list */
	struct set *idle;     /* the last one that was used first */
	atomic_uint under_way;
};

/* ------------------------------------------------------------------ libcurl calls these */

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

static size_t on_header(char *line, size_t one, size_t length, void *arg)
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
	return s->get->kind == GET_WHOLE && answer_fits(&s->answer, s->get->version, s->get->size);
}

static size_t on_body(char *data, size_t one, size_t length, void *arg)
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

/* ------------------------------------------------------------------ sets */

static bool set_up(CURL *easy, struct slot *s, const struct target *t)
{
	bool done = true;
#define SET(option, value) done = done && curl_easy_setopt(easy, option, value) == CURLE_OK
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_PROXY, ""); /* not from variables */
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_BUFFERSIZE, RECEIVE_BYTES);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, SEND_BYTES);
	SET(CURLOPT_CONNECTTIMEOUT_MS, t->connect_ms);
	SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
	SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_CAINFO, t->bundle);
	SET(CURLOPT_CAPATH, NULL);
	SET(CURLOPT_USERAGENT, t->agent);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_HEADERDATA, s);
	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_WRITEDATA, s);
	SET(CURLOPT_PRIVATE, s);
#undef SET
	return done;
}

static struct slot *slot_open(const struct target *t)
{
	struct slot *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	s->easy = curl_easy_init();
	if (s->easy && set_up(s->easy, s, t))
		return s;
	if (s->easy)
		curl_easy_cleanup(s->easy);
	free(s);
	return NULL;
}

static void set_close(struct set *set)
{
	for (unsigned i = 0; i < MOST_PARALLEL; i++)
		if (set->slots[i]) {
			curl_easy_cleanup(set->slots[i]->easy);
			free(set->slots[i]);
		}
	curl_multi_cleanup(set->multi);
	free(set);
}

static struct set *set_take(struct pool *p)
{
	pthread_mutex_lock(&p->lock);
	struct set *set = p->idle;
	if (set)
		p->idle = set->next;
	pthread_mutex_unlock(&p->lock);
	if (set)
		return set;
	set = calloc(1, sizeof *set);
	if (!set)
		return NULL;
	set->multi = curl_multi_init();
	if (!set->multi || curl_multi_setopt(set->multi, CURLMOPT_MAXCONNECTS, (long)MOST_PARALLEL) != CURLM_OK) {
		if (set->multi)
			curl_multi_cleanup(set->multi);
		free(set);
		return NULL;
	}
	return set;
}

static void set_give_back(struct pool *p, struct set *set)
{
	unsigned connections = set->widest;
	pthread_mutex_lock(&p->lock);
	set->next = p->idle;
	p->idle = set;
	while (set->next && connections + set->next->widest <= p->target->most) {
		set = set->next;
		connections += set->widest;
	}
	struct set *old = set->next;
	set->next = NULL;
	pthread_mutex_unlock(&p->lock);
	while (old) {
		struct set *rest = old->next;
		set_close(old);
		old = rest;
	}
}

/* ------------------------------------------------------------------ a batch */

struct batch {
	struct pool *pool;
	struct set *set;
	struct signer signer;
	struct get *gets;
	unsigned count, begun, under_way, ended;
	const uint8_t *abandoned;
};

static bool is_abandoned(const struct batch *b)
{
	return __atomic_load_n(b->abandoned, __ATOMIC_ACQUIRE) != 0;
}

/* Whether one more request may be under way. The first one of a batch always may. */
static bool admit(struct batch *b)
{
	if (atomic_fetch_add(&b->pool->under_way, 1) < b->pool->target->most || !b->under_way)
		return true;
	atomic_fetch_sub(&b->pool->under_way, 1);
	return false;
}

static void finish(struct batch *b, struct slot *s, enum outcome outcome)
{
	curl_multi_remove_handle(b->set->multi, s->easy);
	s->get->outcome = outcome;
	s->get = NULL;
	b->under_way--;
	b->ended++;
	atomic_fetch_sub(&b->pool->under_way, 1);
}

/* Say how a request is made; the handle may have made another one before. */
static bool set_method(CURL *easy, const struct get *g, const struct target *t)
{
	const bool any = g->kind == GET_ANY;
	const char *method = any ? g->said->method : g->kind == GET_HEAD ? "HEAD" : "GET";
	const bool head = !strcmp(method, "HEAD"), sends = !strcmp(method, "PUT") || !strcmp(method, "POST");
	const long timeout_ms = any ? 0 : t->timeout_ms, silence_s = any ? (t->timeout_ms + 999) / 1000 : t->silence_s;
	/* The body first: to say that there is none makes a POST, too. */
	return curl_easy_setopt(easy, CURLOPT_POSTFIELDS, sends ? g->said->data : NULL) == CURLE_OK &&
	       curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(sends ? g->said->data_bytes : 0)) == CURLE_OK &&
	       curl_easy_setopt(easy, sends ? CURLOPT_POST : head ? CURLOPT_NOBODY : CURLOPT_HTTPGET, 1L) == CURLE_OK &&
	       curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, any && !head ? method : NULL) == CURLE_OK &&
	       curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, timeout_ms) == CURLE_OK &&
	       curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, silence_s) == CURLE_OK;
}

/* Begin the next request on a free slot; false: there is no memory. */
static bool begin(struct batch *b)
{
	struct get *g = &b->gets[b->begun++];
	unsigned i = 0;
	while (b->set->slots[i] && b->set->slots[i]->get)
		i++;
	if (!b->set->slots[i] && !(b->set->slots[i] = slot_open(b->pool->target))) {
		atomic_fetch_sub(&b->pool->under_way, 1);
		return false;
	}
	struct slot *s = b->set->slots[i];
	s->get = g;
	s->judged = s->fits = false;
	s->received = 0;
	answer_begin(&s->answer);
	b->under_way++;
	const bool any = g->kind == GET_ANY;
	if (any ? !signer_sign_any(&b->signer, &s->request, g) : !signer_sign(&b->signer, &s->request, g)) {
		g->code = CURLE_URL_MALFORMAT;
		finish(b, s, GET_FAILED);
		return true;
	}
	if (b->under_way > b->set->widest)
		b->set->widest = b->under_way;
	return set_method(s->easy, g, b->pool->target) && curl_easy_setopt(s->easy, CURLOPT_URL, s->request.url) == CURLE_OK &&
	       curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, s->request.headers) == CURLE_OK &&
	       curl_multi_add_handle(b->set->multi, s->easy) == CURLM_OK;
}

/* Whether an answer that ended well is what was asked for. */
static bool complete(const struct slot *s)
{
	if (s->get->kind == GET_ANY)
		return true;
	if (s->get->kind == GET_HEAD)
		return answer_describes(&s->answer);
	return s->fits && (s->get->kind == GET_LIST || s->received == s->get->size);
}

static enum outcome keep(struct batch *b, struct slot *s)
{
	struct get *g = s->get;
	if (g->kind >= GET_LIST) {
		g->size = s->received;
		return GET_DONE;
	}
	if (s->answer.metadata_bytes && !(g->metadata = malloc(s->answer.metadata_bytes))) {
		g->code = CURLE_OUT_OF_MEMORY;
		return GET_FAILED;
	}
	if (g->metadata)
		memcpy(g->metadata, s->answer.metadata, s->answer.metadata_bytes);
	g->metadata_bytes = s->answer.metadata_bytes;
	g->modified_s = s->answer.modified_s;
	if (g->kind == GET_HEAD) {
		g->size = s->answer.length;
		memcpy(g->etag, s->answer.etag, sizeof g->etag);
		return GET_DONE;
	}
	keep_checksums(&g->kept, g->body, g->size);
	GETS_PAUSE(b->abandoned);
	if (is_abandoned(b))
		return GET_ABANDONED;
	if (g->path)
		keep_file(&g->kept, g->path, g->body, g->size, g->stay_open);
	return GET_DONE;
}

static void settle(struct batch *b, struct slot *s, CURLcode code)
{
	struct get *g = s->get;
	curl_off_t microseconds = 0;
	curl_easy_getinfo(s->easy, CURLINFO_TOTAL_TIME_T, &microseconds);
	g->seconds = (double)microseconds / 1e6;
	g->status = s->answer.status;
	g->code = code;
	if (code == CURLE_OK && complete(s))
		finish(b, s, keep(b, s));
	else if (code == CURLE_OK || (s->judged && !s->fits))
		finish(b, s, GET_ANSWERED);
	else
		finish(b, s, GET_FAILED);
}

/* Take the requests that have ended; whether there were any. */
static bool collect(struct batch *b)
{
	bool any = false;
	CURLMsg *message;
	int left;
	while ((message = curl_multi_info_read(b->set->multi, &left))) {
		struct slot *s = NULL;
		const CURLcode code = message->data.result;
		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&s);
		settle(b, s, code);
		any = true;
	}
	return any;
}

static bool run(struct batch *b)
{
	while (b->ended < b->count) {
		int running;
		if (is_abandoned(b))
			return true;
		while (b->begun < b->count && b->under_way < MOST_PARALLEL && admit(b))
			if (!begin(b))
				return false;
		if (curl_multi_perform(b->set->multi, &running) != CURLM_OK)
			return false;
		if (!collect(b) && b->under_way && curl_multi_poll(b->set->multi, NULL, 0, LOOK_MS, NULL) != CURLM_OK)
			return false;
	}
	return true;
}

bool pool_get(struct pool *p, const struct credentials *c, struct get *gets, unsigned count, const uint8_t *abandoned)
{
	struct batch b = { .pool = p, .gets = gets, .count = count, .abandoned = abandoned };
	if (!signer_begin(&b.signer, p->target, c, time(NULL)) || !(b.set = set_take(p)))
		return false;
	const bool done = run(&b);
	for (unsigned i = 0; i < MOST_PARALLEL; i++)
		if (b.set->slots[i] && b.set->slots[i]->get)
			finish(&b, b.set->slots[i], GET_ABANDONED);
	if (done)
		set_give_back(p, b.set);
	else
		set_close(b.set);
	return done;
}

/* ------------------------------------------------------------------ the pool */

struct pool *pool_open(const struct target *t)
{
	struct pool *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	p->target = t;
	pthread_mutex_init(&p->lock, NULL);
	return p;
}

void pool_close(struct pool *p)
{
	for (struct set *set = p->idle, *next; set; set = next) {
		next = set->next;
		set_close(set);
	}
	pthread_mutex_destroy(&p->lock);
	free(p);
}
