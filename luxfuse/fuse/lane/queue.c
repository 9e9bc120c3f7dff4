/* Requests on their way to pyfuse3, and interrupts.
 *
 * Lanes put requests into one queue in the order in which they read them; pyfuse3 waits on `wakeup_fd`, a semaphore that
 * counts them, and takes them by the `fuse_session_receive_buf` of libfuse.c. A full queue makes the lane wait, and then
 * the kernel holds the rest. Some requests go through a queue of their own first, see prompt.c.
 *
 * FUSE_INTERRUPT says that the caller of a request has a signal; Python decides what that means. It may overtake its
 * request, as another lane can have read that: Python keeps it until the request comes.
 */
#include "lane.h"

#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define QUEUE_BOUND 4096

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_room = PTHREAD_COND_INITIALIZER;
struct queue {
	struct request *head, *tail;
	unsigned length;
};
static struct queue queue, prompt; /* those of the second one are answered as prompt.c says */
int wakeup_fd = -1, prompt_fd = -1;
atomic_bool queue_timed;
static bool prompt_wanted; /* guarded by `queue_lock` */

void tell(int eventfd)
{
	const uint64_t one = 1;
	while (write(eventfd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

void wake(void)
{
	tell(wakeup_fd);
}

/* `queue_lock` is held in both. */
static void append(struct queue *to, struct request *r)
{
	if (to->tail)
		to->tail->next = r;
	else
		to->head = r;
	to->tail = r;
	to->length++;
}

static struct request *take(struct queue *from)
{
	struct request *r = from->head;
	if (r) {
		from->head = r->next;
		if (!from->head)
			from->tail = NULL;
		from->length--;
		pthread_cond_broadcast(&queue_room);
	}
	return r;
}

/* Whether prompt.c has a function for a request. */
static bool is_prompt(const void *data, size_t size)
{
	if (size < sizeof(struct fuse_in_header))
		return false;
	switch (((const struct fuse_in_header *)data)->opcode) {
	case FUSE_LOOKUP:
	case FUSE_GETATTR:
	case FUSE_CREATE:
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_SETATTR:
	case FUSE_READDIRPLUS:
		return true;
	default:
		return false;
	}
}

bool enqueue(const void *data, size_t size)
{
	struct request *r = malloc(sizeof *r);
	void *copy = malloc(size);
	if (!r || !copy) {
		free(r);
		free(copy);
		return false;
	}
	memcpy(copy, data, size);
	const bool timed = atomic_load_explicit(&tracing, memory_order_relaxed) ||
			   atomic_load_explicit(&queue_timed, memory_order_relaxed);
	*r = (struct request){ NULL, size, copy, timed ? now_ns() : 0 };
	const bool may_be_prompt = is_prompt(data, size);
	struct queue *to;
	pthread_mutex_lock(&queue_lock);
	while ((to = prompt_wanted && may_be_prompt ? &prompt : &queue)->length >= QUEUE_BOUND)
		pthread_cond_wait(&queue_room, &queue_lock);
	append(to, r);
	const bool first = to->length == 1;
	pthread_mutex_unlock(&queue_lock);
	if (to == &queue)
		wake();
	else if (first)
		tell(prompt_fd);
	return true;
}

struct request *dequeue(void)
{
	pthread_mutex_lock(&queue_lock);
	const bool was_full = queue.length >= QUEUE_BOUND;
	struct request *r = take(&queue);
	const bool waits = was_full && prompt.head;
	pthread_mutex_unlock(&queue_lock);
	if (waits)
		tell(prompt_fd);
	return r;
}

/* None while the other queue is full, as it may have to be passed on; `dequeue` then tells. */
struct request *dequeue_prompt(void)
{
	pthread_mutex_lock(&queue_lock);
	struct request *r = queue.length < QUEUE_BOUND ? take(&prompt) : NULL;
	pthread_mutex_unlock(&queue_lock);
	return r;
}

bool prompt_waits(void)
{
	pthread_mutex_lock(&queue_lock);
	const bool waits = prompt.head && queue.length < QUEUE_BOUND;
	pthread_mutex_unlock(&queue_lock);
	return waits;
}

void prompt_want(bool wanted)
{
	struct request *r;
	unsigned moved = 0;
	pthread_mutex_lock(&queue_lock);
	prompt_wanted = wanted;
	for (; !wanted && (r = take(&prompt)); moved++) {
		r->next = NULL;
		append(&queue, r);
	}
	pthread_mutex_unlock(&queue_lock);
	while (moved--)
		wake();
}

void pass_on(struct request *r)
{
	r->next = NULL;
	pthread_mutex_lock(&queue_lock);
	append(&queue, r); /* without a wait, as the loop makes room; `dequeue_prompt` has seen some, lanes may have taken it */
	pthread_mutex_unlock(&queue_lock);
	wake();
}

unsigned queue_length(void)
{
	pthread_mutex_lock(&queue_lock);
	const unsigned length = queue.length + prompt.length;
	pthread_mutex_unlock(&queue_lock);
	return length;
}

/* ------------------------------------------------------------------ interrupts */

static pthread_mutex_t interrupt_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t interrupted[INTERRUPTS]; /* request numbers not yet taken by Python; more are dropped */
static unsigned interrupted_count;
int interrupts_fd = -1;

void note_interrupt(const void *data, size_t size)
{
	const struct fuse_in_header *in = data;
	const struct fuse_interrupt_in *arg = (const void *)(in + 1);
	if (size < sizeof *in + sizeof *arg || interrupts_fd < 0)
		return;
	waiting_interrupted(arg->unique);
	pthread_mutex_lock(&interrupt_lock);
	if (interrupted_count < INTERRUPTS)
		interrupted[interrupted_count++] = arg->unique;
	pthread_mutex_unlock(&interrupt_lock);
	tell(interrupts_fd);
}

unsigned take_interrupts(uint64_t *found)
{
	pthread_mutex_lock(&interrupt_lock);
	const unsigned taken = interrupted_count;
	memcpy(found, interrupted, taken * sizeof *found);
	interrupted_count = 0;
	pthread_mutex_unlock(&interrupt_lock);
	return taken;
}
