/* Batches of requests to one under-store.
 *
 * A batch is made by the thread that asks for it, on a set of connections that nobody else uses meanwhile (sets.c). Up to
 * MOST_PARALLEL requests of a batch are under way at once. Over all batches there are no more than `most`, nor than there are
 * descriptors allowed, but each may always have one: so the number of threads is what bounds them, as it does elsewhere.
 *
 * A request of any kind (GET_ANY) may send a body, from where Python has it. Unless it is said to be brief, it has no deadline
 * of its own but silence: how long a body takes is the line's matter, and a copy the server's. The number of these is
 * bounded where they are asked for: what is written takes nothing from what is read, nor the other way round.
 *
 * Most requests of a batch end at about the same time. Where one does not, those that have ended are told after a while
 * (TELL_MS), so that they do not wait for it; not each at once, as to tell takes the interpreter lock.
 */
#include "gets.h"

#include <stdlib.h>
#include <string.h>

#define LOOK_MS 500	   /* how often it is looked whether anybody still waits */
#define TELL_MS 20

struct batch {
	struct pool *pool;
	struct set *set;
	struct signer signer;
	struct get *gets;
	unsigned count, begun, under_way, ended, told;
	int64_t untold_ms; /* since when there is one that has ended and is not told */
	const uint8_t *abandoned;
	struct listener *listener;
};

static int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool is_abandoned(const struct batch *b)
{
	return __atomic_load_n(b->abandoned, __ATOMIC_ACQUIRE) != 0;
}

/* Whether one more request may be under way. The first one of a batch always may. */
static bool admit(struct batch *b)
{
	if (b->gets[b->begun].kind == GET_ANY)
		return true;
	const unsigned most = b->pool->target->most, allowed = sets_allowed();
	if (atomic_fetch_add(&b->pool->under_way, 1) < (most < allowed ? most : allowed) || !b->under_way)
		return true;
	atomic_fetch_sub(&b->pool->under_way, 1);
	return false;
}

static void leave(struct batch *b, const struct get *g)
{
	if (g->kind != GET_ANY)
		atomic_fetch_sub(&b->pool->under_way, 1);
}

static void finish(struct batch *b, struct slot *s, enum outcome outcome)
{
	curl_multi_remove_handle(b->set->multi, s->easy);
	leave(b, s->get);
	if (b->told == b->ended && b->listener)
		b->untold_ms = now_ms();
	s->get->outcome = outcome;
	s->get->ended = true;
	s->get = NULL;
	b->under_way--;
	b->ended++;
}

/* Say how a request is made; the handle may have made another one before. */
static bool set_method(CURL *easy, const struct get *g, const struct target *t)
{
	const bool any = g->kind == GET_ANY;
	const char *method = any ? g->said->method : g->kind == GET_HEAD ? "HEAD" : "GET";
	const bool head = !strcmp(method, "HEAD"), sends = !strcmp(method, "PUT") || !strcmp(method, "POST");
	const bool patient = any && !g->said->brief;
	const long timeout_ms = patient ? 0 : t->timeout_ms, silence_s = patient ? (t->timeout_ms + 999) / 1000 : t->silence_s;
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
	if (!b->set->slots[i] && !(b->set->slots[i] = slot_open(b->set, b->pool->target))) {
		leave(b, g);
		return false;
	}
	if (!b->under_way)
		set_look(b->set);
	struct slot *s = b->set->slots[i];
	s->get = g;
	s->judged = s->fits = false;
	s->received = 0;
	s->answer.target = b->pool->target;
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
	g->total = s->answer.total;
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

/* Tell of what has ended, if it has waited for others long enough; returns how long it may wait yet. */
static int tell(struct batch *b)
{
	if (!b->listener || b->told == b->ended || b->ended == b->count)
		return LOOK_MS;
	const int64_t waited_ms = now_ms() - b->untold_ms;
	if (waited_ms < TELL_MS)
		return (int)(TELL_MS - waited_ms);
	b->told = b->ended;
	b->listener->some_ended(b->listener);
	return LOOK_MS;
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
		const bool some = collect(b);
		const int wait_ms = tell(b);
		if (!some && b->under_way && curl_multi_poll(b->set->multi, NULL, 0, wait_ms, NULL) != CURLM_OK)
			return false;
	}
	return true;
}

static bool make(struct batch *b, const struct credentials *c)
{
	struct pool *p = b->pool;
	if (!signer_begin(&b->signer, p->target, c, time(NULL)) || !(b->set = set_take(p)))
		return false;
	const bool done = run(b);
	for (unsigned i = 0; i < MOST_PARALLEL; i++)
		if (b->set->slots[i] && b->set->slots[i]->get)
			finish(b, b->set->slots[i], GET_ABANDONED);
	if (done)
		set_give_back(p, b->set);
	else
		set_close(b->set);
	return done;
}

bool pool_get(struct pool *p, const struct credentials *c, struct get *gets, unsigned count, const uint8_t *abandoned)
{
	struct batch b = { .pool = p, .gets = gets, .count = count, .abandoned = abandoned };
	return make(&b, c);
}

bool pool_make(struct pool *p, const struct credentials *c, struct get *gets, unsigned count, struct listener *l)
{
	struct batch b = { .pool = p, .gets = gets, .count = count, .abandoned = &l->abandoned, .listener = l };
	return make(&b, c);
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
