/* Connections to one under-store, in sets: a multi handle of libcurl with its easy handles and kept-alive connections, which
 * one thread alone uses at a time (libcurl cannot share connections between threads).
 *
 * The set that was given back last is taken first; so those that are not needed grow old at the end of the list, and go when
 * the idle connections would be more than `most`, or take more descriptors than are allowed: a part of those that the
 * process may have (`luxfuse.shares`).
 *
 * A connection on which something has come since its last answer ended is not used again. A server that sends a body with
 * its answer to a HEAD (some send that of an error) would have it taken for the answer to the next request, and each later
 * answer for the one after it; libcurl before 8 takes a connection for good if there is anything to be read from it. So we
 * make the sockets ourselves, look at them while none is in use, and shut those down; libcurl then makes a new connection.
 */
#include "gets.h"

#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECEIVE_BYTES 65536L
#define SEND_BYTES (256L << 10) /* of a body that is sent, at once */
#define WAKES 2u /* descriptors that a multi handle takes beside its connections */

static atomic_uint allowed = UINT_MAX;

void sets_allow(unsigned descriptors)
{
	atomic_store(&allowed, descriptors);
}

unsigned sets_allowed(void)
{
	return atomic_load(&allowed);
}

/* ------------------------------------------------------------------ sockets */

static ino_t number_of(int fd)
{
	struct stat st;
	return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) ? st.st_ino : 0;
}

static void forget(struct set *set, unsigned i)
{
	set->sockets[i] = set->sockets[--set->sockets_open];
	set->numbers[i] = set->numbers[set->sockets_open];
}

/* libcurl 7.88 to 8.1 closes a socket that never got connected without telling us; its descriptor may be anybody's by now. */
static void forget_closed(struct set *set)
{
	for (unsigned i = set->sockets_open; i-- > 0;)
		if (number_of(set->sockets[i].fd) != set->numbers[i])
			forget(set, i);
}

static curl_socket_t on_open(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
	struct set *set = arg;
	(void)purpose;
	forget_closed(set);
	if (set->sockets_open == SOCKETS)
		return CURL_SOCKET_BAD;
	const int fd = socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
	if (fd < 0)
		return CURL_SOCKET_BAD;
	set->numbers[set->sockets_open] = number_of(fd);
	set->sockets[set->sockets_open++] = (struct pollfd){ .fd = fd, .events = POLLIN };
	return fd;
}

static int on_close(void *arg, curl_socket_t fd)
{
	struct set *set = arg;
	for (unsigned i = 0; i < set->sockets_open; i++)
		if (set->sockets[i].fd == fd) {
			forget(set, i);
			break;
		}
	return close(fd);
}

void set_look(struct set *set)
{
	forget_closed(set);
	if (!set->sockets_open || poll(set->sockets, set->sockets_open, 0) <= 0)
		return;
	for (unsigned i = 0; i < set->sockets_open; i++)
		if (set->sockets[i].revents)
			shutdown(set->sockets[i].fd, SHUT_RDWR);
}

/* ------------------------------------------------------------------ sets */

static bool set_up(CURL *easy, struct slot *s, struct set *set, const struct target *t)
{
	bool done = true;
#define SET(option, value) done = done && curl_easy_setopt(easy, option, value) == CURLE_OK
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_PROXY, ""); /* not from variables */
	SET(CURLOPT_DNS_CACHE_TIMEOUT, 0L); /* as obstore: a name that no longer resolves, or moves, does so for all */
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
	SET(CURLOPT_OPENSOCKETFUNCTION, on_open);
	SET(CURLOPT_OPENSOCKETDATA, set);
	SET(CURLOPT_CLOSESOCKETFUNCTION, on_close);
	SET(CURLOPT_CLOSESOCKETDATA, set);
	SET(CURLOPT_HEADERFUNCTION, receive_line);
	SET(CURLOPT_HEADERDATA, s);
	SET(CURLOPT_WRITEFUNCTION, receive_body);
	SET(CURLOPT_WRITEDATA, s);
	SET(CURLOPT_PRIVATE, s);
#undef SET
	return done;
}

struct slot *slot_open(struct set *set, const struct target *t)
{
	struct slot *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	s->easy = curl_easy_init();
	if (s->easy && set_up(s->easy, s, set, t))
		return s;
	if (s->easy)
		curl_easy_cleanup(s->easy);
	free(s);
	return NULL;
}

void set_close(struct set *set)
{
	for (unsigned i = 0; i < MOST_PARALLEL; i++)
		if (set->slots[i]) {
			curl_easy_cleanup(set->slots[i]->easy);
			free(set->slots[i]);
		}
	curl_multi_cleanup(set->multi);
	free(set);
}

struct set *set_take(struct pool *p)
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

void set_give_back(struct pool *p, struct set *set)
{
	const unsigned most = p->target->most, most_open = sets_allowed();
	unsigned connections = set->widest, open = set->widest + WAKES;
	pthread_mutex_lock(&p->lock);
	set->next = p->idle;
	p->idle = set;
	while (set->next && connections + set->next->widest <= most && open + set->next->widest + WAKES <= most_open) {
		set = set->next;
		connections += set->widest;
		open += set->widest + WAKES;
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
