/* Memory for the bodies of parts, which is used again.
 *
 * A body of megabytes that malloc is asked for comes as fresh pages from the kernel, which clears them, and which go back as
 * soon as it is freed; on a virtual machine they may even have to be fetched from the host. To receive into pages that are
 * there costs a fraction of that. So some memory is kept when nobody uses it: IDLE_BYTES at most, until `bodies_release`.
 *
 * The last one that was given back is taken first, as it is the likeliest to be in the processor's caches; the first one
 * goes when there would be too many.
 */
#include "gets.h"

#include <stdlib.h>
#include <sys/mman.h>

#define IDLE_BYTES ((size_t)32 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows */
static struct body *idle;
static size_t idle_bytes;

static size_t room_for(size_t size)
{
	return (size + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static struct body *make(size_t room)
{
	struct body *b = calloc(1, sizeof *b);
	if (!b)
		return NULL;
	b->room = room;
	b->bytes = mmap(NULL, b->room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->bytes == MAP_FAILED) {
		free(b);
		return NULL;
	}
	return b;
}

struct body *body_take(size_t size)
{
	const size_t room = room_for(size);
	pthread_mutex_lock(&lock);
	struct body **at = &idle;
	while (*at && (*at)->room != room) /* what has more would take more than its user has asked for, and counts */
		at = &(*at)->next;
	struct body *found = *at;
	if (found) {
		*at = found->next;
		idle_bytes -= found->room;
	}
	pthread_mutex_unlock(&lock);
	return found ? found : make(room);
}

struct body *body_give_back(struct body *b)
{
	struct body *rest = NULL;
	pthread_mutex_lock(&lock);
	b->next = idle;
	idle = b;
	idle_bytes += b->room;
	if (idle_bytes > IDLE_BYTES) { /* the oldest go, or those of sizes that nobody asks for would stay for ever */
		struct body **at = &idle;
		for (idle_bytes = 0; *at && idle_bytes + (*at)->room <= IDLE_BYTES; at = &(*at)->next)
			idle_bytes += (*at)->room;
		rest = *at;
		*at = NULL;
	}
	pthread_mutex_unlock(&lock);
	return rest;
}

void bodies_drop(struct body *b)
{
	for (struct body *next; b; b = next) {
		next = b->next;
		munmap(b->bytes, b->room);
		free(b);
	}
}

void bodies_release(void)
{
	pthread_mutex_lock(&lock);
	struct body *all = idle;
	idle = NULL;
	idle_bytes = 0;
	pthread_mutex_unlock(&lock);
	bodies_drop(all);
}
