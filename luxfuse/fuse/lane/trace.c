/* What lanes answer, for a watcher: which thread asked for what, how long it took, how many bytes came.
 *
 * While `tracing` is set each lane puts what it has answered into one buffer, which Python takes from now and then. Where
 * that is full, what comes is counted and dropped: nobody waits for a watcher. While it is not set, a request costs one look
 * at it. The buffer is there from the first time on.
 */
#include "lane.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

atomic_bool tracing;
static pthread_mutex_t trace_lock = PTHREAD_MUTEX_INITIALIZER;
static struct traced *buffer; /* of TRACED, a ring */
static size_t first, count;
static unsigned long long dropped;

bool trace_set(bool wanted)
{
	pthread_mutex_lock(&trace_lock);
	if (wanted && !buffer)
		buffer = malloc(TRACED * sizeof *buffer);
	const bool can = !wanted || buffer;
	for (; count; count--, first++)
		free(buffer[first % TRACED].name);
	first = 0;
	dropped = 0;
	pthread_mutex_unlock(&trace_lock);
	atomic_store(&tracing, wanted && can);
	return can;
}

void trace_note(const struct lane *lane, const void *request, int64_t began_ns)
{
	const struct fuse_in_header *in = request;
	struct traced found = { .began_ns = began_ns, .ino = in->nodeid, .pid = in->pid, .uid = in->uid, .opcode = in->opcode };
	switch (in->opcode) {
	case FUSE_OPEN:
		found.passthrough = lane->seen.passthrough;
		break;
	case FUSE_READ:
		found.offset = ((const struct fuse_read_in *)(in + 1))->offset;
		found.bytes = lane->seen.bytes;
		break;
	case FUSE_WRITE:
		found.offset = ((const struct fuse_write_in *)(in + 1))->offset;
		found.bytes = ((const struct fuse_write_in *)(in + 1))->size;
		break;
	case FUSE_LOOKUP:
		if (lane->seen.ino)
			found.ino = lane->seen.ino;
		else
			found.name = strdup((const char *)(in + 1)); /* `answer_missing` has seen its end */
		break;
	case FUSE_GETATTR:
		break;
	default:
		return; /* closes, and what the kernel asks for itself */
	}
	found.took_ns = now_ns() - began_ns;
	pthread_mutex_lock(&trace_lock);
	if (count < TRACED && buffer)
		buffer[(first + count++) % TRACED] = found;
	else {
		free(found.name);
		dropped++;
	}
	pthread_mutex_unlock(&trace_lock);
}

size_t take_traced(struct traced *found, size_t most, unsigned long long *lost)
{
	size_t taken = 0;
	pthread_mutex_lock(&trace_lock);
	for (; taken < most && count; taken++, count--) {
		found[taken] = buffer[first];
		first = (first + 1) % TRACED;
	}
	*lost = dropped;
	dropped = 0;
	pthread_mutex_unlock(&trace_lock);
	return taken;
}
