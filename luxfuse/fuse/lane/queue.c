/* Requests on their way to pyfuse3, and interrupts.
 *
 * Lanes put requests into one queue in the order in which they read them; pyfuse3 waits on `wakeup_fd`, a semaphore that
 * counts them, and takes them by the `fuse_session_receive_buf` of libfuse.c. A full queue makes the lane wait, and then
 * the kernel holds the rest.
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
static struct request *queue_head, *queue_tail;
static unsigned queue_length;
int wakeup_fd = -1;

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
	*r = (struct request){ NULL, size, copy };
	pthread_mutex_lock(&queue_lock);
	while (queue_length >= QUEUE_BOUND)
		pthread_cond_wait(&queue_room, &queue_lock);
	if (queue_tail)
		queue_tail->next = r;
	else
		queue_head = r;
	queue_tail = r;
	queue_length++;
	pthread_mutex_unlock(&queue_lock);
	wake();
	return true;
}

struct request *dequeue(void)
{
	pthread_mutex_lock(&queue_lock);
	struct request *r = queue_head;
	if (r) {
		queue_head = r->next;
		if (!queue_head)
			queue_tail = NULL;
		queue_length--;
		pthread_cond_signal(&queue_room);
	}
	pthread_mutex_unlock(&queue_lock);
	return r;
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
