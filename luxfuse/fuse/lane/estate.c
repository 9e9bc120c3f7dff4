/* The opens that the kernel knows of, in memory that outlives the process: a successor finds them there.
 *
 * The memory is the part of an estate (luxfuse/estate/memory.py) from OPENS_AT on: first the operations under way, one for
 * each lane and one for Python's thread, then the slots. A registered inode has a slot with its backing id, the inode number
 * of its file, and its opens. Without an estate there are no slots, and nothing is noted.
 *
 * An open is counted here when it is about to be answered, and not when it is decided: what was not answered the kernel
 * asks again of the successor, which counts it then. A kill can come between counting and answering. So the operation is
 * written down first, with the count of before, then the count is changed, then the operation is marked as counted; all
 * under the lock of the inode's stripe. The successor learns from the kernel which requests it will be sent again, and takes
 * those back that were counted (`luxfuse.fuse.inheritance`). Opens and writers are one word, so that they change together.
 * An operation also says whose opens it has counted: by the time of a kill the inode may have another slot, and the slot be
 * another inode's.
 */
#include "lane.h"

#include <pthread.h>
#include <stdlib.h>

#define USED 5 /* Word.SLOTS_USED */

struct operation {
	atomic_ullong unique, slot, before, state; /* 0: none, 1: about to be counted, 2: counted */
	int64_t by;
	uint64_t ino; /* of the slot; 0 where an older luxfuse has written it */
	uint64_t spare[2];
};

struct slot {
	atomic_ullong ino, counts; /* opens in the upper half, those of them that write in the lower */
	uint64_t file_ino;
	int64_t backing_id;
};

static struct operation *operations;
static struct slot *slots;
static atomic_ullong *words;
_Thread_local unsigned operation_number = MOST_LANES; /* of this thread; Python's one, unless it is a lane */

static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t given_back[ESTATE_SLOTS]; /* slots before `USED` that are free */
static uint32_t given_back_count;

_Static_assert(sizeof(struct operation) == 64 && sizeof(struct slot) == 32, "as luxfuse.fuse.inheritance reads them");

void estate_attach(void *memory)
{
	words = memory;
	operations = (void *)((char *)memory + ESTATE_OPENS_AT);
	slots = (void *)(operations + ESTATE_OPERATIONS);
	given_back_count = 0;
	for (unsigned i = 0; i < ESTATE_OPERATIONS; i++)
		atomic_store(&operations[i].state, 0);
	for (uint32_t i = (uint32_t)atomic_load(&words[USED]); i-- > 0;)
		if (!atomic_load(&slots[i].ino))
			given_back[given_back_count++] = i;
}

bool estate_here(void)
{
	return slots != NULL;
}

struct slot *estate_slot(uint32_t number)
{
	return slots && number < ESTATE_SLOTS ? &slots[number] : NULL;
}

struct slot *estate_take(uint64_t ino, int backing_id, uint64_t file_ino)
{
	struct slot *s = NULL;
	pthread_mutex_lock(&slots_lock);
	if (given_back_count) {
		s = &slots[given_back[--given_back_count]];
	} else {
		const unsigned long long used = atomic_load(&words[USED]);
		if (used < ESTATE_SLOTS) {
			s = &slots[used];
			atomic_store(&words[USED], used + 1);
		}
	}
	pthread_mutex_unlock(&slots_lock);
	if (s) {
		s->file_ino = file_ino;
		s->backing_id = backing_id;
		atomic_store(&s->counts, 0);
		atomic_store(&s->ino, ino); /* from here on a successor believes the rest */
	}
	return s;
}

void estate_give(struct slot *s)
{
	if (!s)
		return;
	atomic_store(&s->ino, 0);
	atomic_store(&s->counts, 0);
	pthread_mutex_lock(&slots_lock);
	given_back[given_back_count++] = (uint32_t)(s - slots);
	pthread_mutex_unlock(&slots_lock);
}

void estate_count(struct slot *s, uint64_t unique, int opens, int writers)
{
	if (!s)
		return;
	struct operation *o = &operations[operation_number];
	const uint64_t before = atomic_load(&s->counts);
	const int64_t by = (int64_t)opens * (1ll << 32) + writers;
	atomic_store(&o->state, 0);
	atomic_store(&o->unique, unique);
	atomic_store(&o->slot, (unsigned long long)(s - slots));
	atomic_store(&o->before, before);
	o->by = by;
	o->ino = atomic_load(&s->ino);
	atomic_store(&o->state, 1);
	atomic_store(&s->counts, before + (uint64_t)by);
	atomic_store(&o->state, 2);
}

void estate_answered(void)
{
	if (slots)
		atomic_store_explicit(&operations[operation_number].state, 0, memory_order_release);
}

uint64_t estate_counts(const struct slot *s)
{
	return atomic_load(&((struct slot *)s)->counts);
}
