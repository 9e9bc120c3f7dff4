/* OPENs that wait for a file on its way.
 *
 * Python says of which inodes a file is being fetched that it will register (`waiting_expect`). An OPEN of one of these, for
 * reading, is kept here instead of going to Python, which would only wait for the same, at many times the processor time. When
 * the file has come, and is registered, or will not come, Python says so (`waiting_over`): what waits is answered as a lane
 * would answer it now, or goes to Python.
 *
 * Python keeps the last word. What has waited for too long goes to it (`waiting_give_up`, which `waiting_fd` has it call as
 * long as anything waits), for it knows what to do about a store that does not answer; so does an OPEN whose caller has a
 * signal, before Python hears of that (a signal that overtakes its OPEN, by another lane, is met when that has waited for too
 * long); and all, before the lanes rest. While somebody watches, or slow requests are told, nothing waits here: both say what
 * an open has waited for. An inode is expected until a time at most, so that one of which Python never says more is forgotten.
 *
 * One lock for all: a program that waits here has waited for the store before, and does for longer than for a lock.
 */
#include "lane.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MOST_EXPECTED 16384u
#define MOST_WAITING 1024u
#define BUCKETS 4096u

struct expected {
	struct expected *next;
	uint64_t ino;
	int64_t until_ns; /* CLOCK_MONOTONIC */
};

static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER; /* taken alone */
static struct expected *buckets[BUCKETS];
static atomic_uint expected_count; /* changed under the lock */
static struct request *first, **end = &first; /* those that wait, the oldest first */
static unsigned waiting_count;
static unsigned long long waited, waited_ns; /* those that were answered here */
int waiting_fd = -1;

static struct expected **bucket_of(uint64_t ino)
{
	return &buckets[(ino * 0x9E3779B97F4A7C15ull) >> 52];
}

static void forget(struct expected **at)
{
	struct expected *e = *at;
	*at = e->next;
	free(e);
	atomic_fetch_sub(&expected_count, 1);
}

/* Return where an inode is that is expected still; its bucket is rid of others that are not. The lock is held. */
static struct expected **find(uint64_t ino)
{
	const int64_t now = now_ns();
	struct expected **at = bucket_of(ino), **found = NULL;
	while (*at) {
		if ((*at)->until_ns <= now) {
			forget(at);
			continue;
		}
		if ((*at)->ino == ino)
			found = at;
		at = &(*at)->next;
	}
	return found;
}

bool waiting_expect(uint64_t ino, int64_t until_ns)
{
	struct expected *e = malloc(sizeof *e);
	if (!e)
		return false;
	pthread_mutex_lock(&waiting_lock);
	struct expected **at = find(ino);
	const bool room = at || atomic_load(&expected_count) < MOST_EXPECTED;
	if (at) {
		(*at)->until_ns = until_ns;
	} else if (room) {
		*e = (struct expected){ *bucket_of(ino), ino, until_ns };
		*bucket_of(ino) = e;
		atomic_fetch_add(&expected_count, 1);
		e = NULL;
	}
	pthread_mutex_unlock(&waiting_lock);
	free(e);
	return room;
}

static const struct fuse_in_header *header_of(const struct request *r)
{
	return r->data;
}

/* Take the request out that is at `at`. The lock is held. */
static struct request *take(struct request **at)
{
	struct request *r = *at;
	*at = r->next;
	if (end == &r->next)
		end = at;
	r->next = NULL;
	waiting_count--;
	return r;
}

bool waiting_keep(const void *data, size_t size)
{
	const struct fuse_in_header *in = data;
	const struct fuse_open_in *arg = (const void *)(in + 1);
	if (!atomic_load_explicit(&expected_count, memory_order_relaxed) || (arg->flags & O_ACCMODE) != O_RDONLY || arg->flags & O_TRUNC)
		return false;
	if (atomic_load_explicit(&tracing, memory_order_relaxed) || atomic_load_explicit(&queue_timed, memory_order_relaxed))
		return false;
	struct request *r = malloc(sizeof *r);
	void *copy = malloc(size);
	bool kept = false, told = false;
	if (r && copy) {
		memcpy(copy, data, size);
		*r = (struct request){ NULL, size, copy, now_ns() };
		LANE_PAUSE();
		pthread_mutex_lock(&waiting_lock);
		kept = waiting_count < MOST_WAITING && find(in->nodeid);
		if (kept) {
			told = !waiting_count++;
			*end = r;
			end = &r->next;
		}
		pthread_mutex_unlock(&waiting_lock);
	}
	if (!kept) {
		free(r);
		free(copy);
	}
	if (told && waiting_fd >= 0)
		tell(waiting_fd);
	return kept;
}

/* Answer a request that has waited, as a lane would; false: it goes to Python. */
static bool answer(const struct request *r)
{
	const struct fuse_in_header *in = header_of(r);
	bool passthrough;
	return lane_answer_open(in->nodeid, in->unique, &passthrough, NULL);
}

static void settle(struct request *r, bool registered)
{
	while (r) {
		struct request *next = r->next;
		if (registered && answer(r)) {
			pthread_mutex_lock(&waiting_lock);
			waited++;
			waited_ns += (unsigned long long)(now_ns() - r->at_ns);
			pthread_mutex_unlock(&waiting_lock);
			free(r->data);
			free(r);
		} else {
			r->at_ns = 0; /* it waited for the store, and not for Python */
			pass_on(r);
		}
		r = next;
	}
}

void waiting_over(uint64_t ino)
{
	struct request *taken = NULL, **last = &taken;
	pthread_mutex_lock(&waiting_lock);
	struct expected **at = find(ino);
	if (at)
		forget(at);
	for (struct request **each = &first; *each;) {
		if (header_of(*each)->nodeid != ino) {
			each = &(*each)->next;
			continue;
		}
		*last = take(each);
		last = &(*last)->next;
	}
	pthread_mutex_unlock(&waiting_lock);
	settle(taken, true);
}

bool waiting_give_up(int64_t before_ns)
{
	struct request *taken = NULL, **last = &taken;
	pthread_mutex_lock(&waiting_lock);
	while (first && first->at_ns < before_ns) {
		*last = take(&first);
		last = &(*last)->next;
	}
	const bool more = first != NULL;
	pthread_mutex_unlock(&waiting_lock);
	settle(taken, false);
	return more;
}

void waiting_interrupted(uint64_t unique)
{
	struct request *taken = NULL;
	pthread_mutex_lock(&waiting_lock);
	for (struct request **each = &first; *each && !taken; each = taken ? each : &(*each)->next)
		if (header_of(*each)->unique == unique)
			taken = take(each);
	pthread_mutex_unlock(&waiting_lock);
	settle(taken, false);
}

void waiting_sums(unsigned *now, unsigned long long *count, unsigned long long *ns)
{
	pthread_mutex_lock(&waiting_lock);
	*now = waiting_count;
	*count = waited;
	*ns = waited_ns;
	pthread_mutex_unlock(&waiting_lock);
}
