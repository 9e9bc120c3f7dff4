/* LOOKUP and GETATTR from what Python has said of names.
 *
 * Python offers a name with its attributes and the time up to which they are believed (`answers_offer`), and revokes it
 * before it changes anything of it. What was not offered, has been revoked, or is too old, goes to Python. What the lanes
 * answer is what Python would: it checks no permissions either, as the kernel does (default_permissions).
 *
 * Revocation. A lane looks an answer up and sends it under the lock of the stripe that the answer is in; sending is a
 * writev to /dev/fuse, which does not wait. Revoking takes the answer out under the same lock. So when it returns, all
 * replies of before are with the kernel, and come before whatever Python sends from then on: the answer to the change, or
 * the word to the kernel to forget a name. No later one is sent.
 *
 * An answer is in two lists, by name for LOOKUP and by inode for GETATTR, each with stripes of its own. It is taken out of
 * one after the other, and then freed: nobody can have it. Names of one directory are revoked together by raising a number
 * that their answers must have (`generations`; directories may share one, and then answers of others go, too), and going
 * once through all locks, so that each lane that has looked at the old number has sent.
 *
 * Only Python adds and takes out, one thread at a time (it has the interpreter lock): so it reads the lists without locks.
 *
 * The table has a budget. Each offer sweeps a few lists for what is too old or revoked; if that is not enough, answers go
 * that no lane has used since the sweep came by last, but not for those that are offered ahead.
 */
#include "lane.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#ifndef ANSWER_BUCKETS
#define ANSWER_BUCKETS 131072u /* fewer in a test, so that lists are long */
#endif
#define STRIPES 64u
#define GENERATIONS 4096u
#define SWEPT 4u	  /* lists looked through at an offer */
#define SWEPT_MOST 64u	  /* and at one that finds no room */
#define BLOCK_SIZE 4096u
#define OVERHEAD 16u /* of malloc, for one answer */

struct answer {
	struct answer *next_by_name, *next_by_ino;
	struct offer said; /* but for its name */
	uint64_t generation;
	atomic_bool used;
	char name[];
};

struct stripe {
	_Alignas(64) pthread_mutex_t lock;
};

static struct stripe name_stripes[STRIPES] = { [0 ... STRIPES - 1] = { PTHREAD_MUTEX_INITIALIZER } };
static struct stripe ino_stripes[STRIPES] = { [0 ... STRIPES - 1] = { PTHREAD_MUTEX_INITIALIZER } };
static struct answer *by_name[ANSWER_BUCKETS], *by_ino[ANSWER_BUCKETS];
static atomic_ullong generations[GENERATIONS];
static size_t count, bytes;
static unsigned hand; /* the next list by inode to be swept */

static unsigned bucket_of_ino(uint64_t ino)
{
	return (unsigned)((ino * 0x9E3779B97F4A7C15ull) >> 40) % ANSWER_BUCKETS;
}

static unsigned bucket_of_name(uint64_t parent, const char *name, size_t size)
{
	uint64_t hash = 0xCBF29CE484222325ull ^ parent * 0x9E3779B97F4A7C15ull; /* FNV-1a */
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ (unsigned char)name[i]) * 0x100000001B3ull;
	return (unsigned)((hash * 0x9E3779B97F4A7C15ull) >> 40) % ANSWER_BUCKETS;
}

static pthread_mutex_t *lock_of_name(unsigned bucket)
{
	return &name_stripes[bucket % STRIPES].lock;
}

static pthread_mutex_t *lock_of_ino(unsigned bucket)
{
	return &ino_stripes[bucket % STRIPES].lock;
}

static atomic_ullong *generation_of(uint64_t directory)
{
	return &generations[(directory * 0x9E3779B97F4A7C15ull) >> 52];
}

static bool is_named(const struct answer *a, uint64_t parent, const char *name, size_t size)
{
	return a->said.parent == parent && a->said.name_size == size && !memcmp(a->name, name, size);
}

static struct answer *find_name(unsigned bucket, uint64_t parent, const char *name, size_t size)
{
	struct answer *a = by_name[bucket];
	while (a && !is_named(a, parent, name, size))
		a = a->next_by_name;
	return a;
}

static struct answer *find_ino(unsigned bucket, uint64_t ino)
{
	struct answer *a = by_ino[bucket];
	while (a && a->said.ino != ino)
		a = a->next_by_ino;
	return a;
}

/* For how long the answer still holds; not at all: 0. */
static int64_t left_ns(const struct answer *a, int64_t now)
{
	const int64_t left = a->said.valid_until_ns - now;
	return left > 0 && atomic_load(generation_of(a->said.parent)) == a->generation ? left : 0;
}

/* ------------------------------------------------------------------ the lanes' side */

static struct fuse_attr attr_of(const struct offer *said)
{
	return (struct fuse_attr){
		.ino = said->ino,
		.size = said->size,
		.blocks = said->blocks,
		.atime = (uint64_t)(said->atime_ns / 1000000000),
		.mtime = (uint64_t)(said->mtime_ns / 1000000000),
		.ctime = (uint64_t)(said->ctime_ns / 1000000000),
		.atimensec = (uint32_t)(said->atime_ns % 1000000000),
		.mtimensec = (uint32_t)(said->mtime_ns % 1000000000),
		.ctimensec = (uint32_t)(said->ctime_ns % 1000000000),
		.mode = said->mode,
		.nlink = 1,
		.uid = said->uid,
		.gid = said->gid,
		.rdev = said->rdev,
		.blksize = BLOCK_SIZE,
	};
}

bool answer_lookup(struct lane *lane, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;
	const char *name = (const char *)(in + 1);
	const size_t room = size - sizeof *in, length = strnlen(name, room);
	if (length + 1 != room)
		return false;
	const unsigned bucket = bucket_of_name(in->nodeid, name, length);
	const int64_t now = now_ns();
	pthread_mutex_lock(lock_of_name(bucket));
	struct answer *a = find_name(bucket, in->nodeid, name, length);
	const int64_t left = a ? left_ns(a, now) : 0;
	struct fuse_entry_out out;
	if (left) {
		out = (struct fuse_entry_out){ .nodeid = a->said.ino, .attr = attr_of(&a->said) };
		out.entry_valid = out.attr_valid = (uint64_t)(left / 1000000000);
		out.entry_valid_nsec = out.attr_valid_nsec = (uint32_t)(left % 1000000000);
		atomic_store_explicit(&a->used, true, memory_order_relaxed);
		count_up(&lane->lookups, 1);
		lane->seen.ino = a->said.ino;
		LANE_PAUSE();
		send_reply(in->unique, 0, &out, sizeof out);
	}
	pthread_mutex_unlock(lock_of_name(bucket));
	return left > 0;
}

bool answer_getattr(struct lane *lane, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;
	if (size < sizeof *in + sizeof(struct fuse_getattr_in))
		return false;
	const unsigned bucket = bucket_of_ino(in->nodeid);
	const int64_t now = now_ns();
	pthread_mutex_lock(lock_of_ino(bucket));
	struct answer *a = find_ino(bucket, in->nodeid);
	const int64_t left = a && !a->said.only_name ? left_ns(a, now) : 0;
	if (left) {
		const struct fuse_attr_out out = { .attr = attr_of(&a->said), .attr_valid = (uint64_t)(left / 1000000000),
						   .attr_valid_nsec = (uint32_t)(left % 1000000000) };
		atomic_store_explicit(&a->used, true, memory_order_relaxed);
		count_up(&lane->getattrs, 1);
		LANE_PAUSE();
		send_reply(in->unique, 0, &out, sizeof out);
	}
	pthread_mutex_unlock(lock_of_ino(bucket));
	return left > 0;
}

/* ------------------------------------------------------------------ Python's side */

static size_t bytes_of(const struct answer *a)
{
	return sizeof *a + a->said.name_size + OVERHEAD;
}

static void take_out(struct answer *a)
{
	if (!a)
		return;
	const unsigned name_bucket = bucket_of_name(a->said.parent, a->name, a->said.name_size), ino_bucket = bucket_of_ino(a->said.ino);
	struct answer **at = &by_name[name_bucket];
	while (*at != a)
		at = &(*at)->next_by_name;
	pthread_mutex_lock(lock_of_name(name_bucket));
	*at = a->next_by_name;
	pthread_mutex_unlock(lock_of_name(name_bucket));
	at = &by_ino[ino_bucket];
	while (*at != a)
		at = &(*at)->next_by_ino;
	pthread_mutex_lock(lock_of_ino(ino_bucket));
	*at = a->next_by_ino;
	pthread_mutex_unlock(lock_of_ino(ino_bucket));
	count--;
	bytes -= bytes_of(a);
	free(a);
}

/* Look through the next list; with `hard`, what was not used since the last time goes, too. */
static void sweep(int64_t now, bool hard)
{
	struct answer *next;
	for (struct answer *a = by_ino[hand]; a; a = next) {
		next = a->next_by_ino;
		if (!left_ns(a, now) || (hard && !atomic_exchange_explicit(&a->used, false, memory_order_relaxed)))
			take_out(a);
	}
	hand = (hand + 1) % ANSWER_BUCKETS;
}

static bool make_room(size_t size, bool ahead)
{
	const int64_t now = now_ns();
	for (unsigned i = 0; i < SWEPT; i++)
		sweep(now, false);
	if (ahead)
		return bytes + size <= (size_t)ANSWERS_BUDGET - ANSWERS_BUDGET / 8;
	for (unsigned i = 0; i < SWEPT_MOST && bytes + size > (size_t)ANSWERS_BUDGET; i++)
		sweep(now, true);
	return bytes + size <= (size_t)ANSWERS_BUDGET;
}

bool answers_offer(const struct offer *said, const char *name, bool ahead)
{
	const size_t size = sizeof(struct answer) + said->name_size;
	const unsigned name_bucket = bucket_of_name(said->parent, name, said->name_size), ino_bucket = bucket_of_ino(said->ino);
	take_out(find_name(name_bucket, said->parent, name, said->name_size));
	take_out(find_ino(ino_bucket, said->ino));
	if (said->mtime_ns < 0 || said->ctime_ns < 0 || said->atime_ns < 0)
		return false;
	struct answer *a = make_room(size + OVERHEAD, ahead) ? malloc(size) : NULL;
	if (!a)
		return false;
	a->said = *said;
	a->generation = atomic_load(generation_of(said->parent));
	atomic_init(&a->used, false);
	memcpy(a->name, name, said->name_size);
	a->next_by_ino = by_ino[ino_bucket];
	pthread_mutex_lock(lock_of_ino(ino_bucket));
	by_ino[ino_bucket] = a;
	pthread_mutex_unlock(lock_of_ino(ino_bucket));
	a->next_by_name = by_name[name_bucket];
	pthread_mutex_lock(lock_of_name(name_bucket));
	by_name[name_bucket] = a;
	pthread_mutex_unlock(lock_of_name(name_bucket));
	count++;
	bytes += bytes_of(a);
	return true;
}

bool answers_have(uint64_t parent, const char *name, size_t size)
{
	const struct answer *a = find_name(bucket_of_name(parent, name, size), parent, name, size);
	return a && left_ns(a, now_ns());
}

void answers_revoke(uint64_t parent, const char *name, size_t size)
{
	take_out(find_name(bucket_of_name(parent, name, size), parent, name, size));
}

void answers_revoke_ino(uint64_t ino)
{
	take_out(find_ino(bucket_of_ino(ino), ino));
}

/* Wait for the lanes that may have looked at a number before it was raised. */
static void let_lanes_send(void)
{
	for (unsigned i = 0; i < STRIPES; i++) {
		pthread_mutex_lock(&name_stripes[i].lock);
		pthread_mutex_unlock(&name_stripes[i].lock);
		pthread_mutex_lock(&ino_stripes[i].lock);
		pthread_mutex_unlock(&ino_stripes[i].lock);
	}
}

void answers_revoke_below(uint64_t directory)
{
	if (!count)
		return;
	atomic_fetch_add(generation_of(directory), 1);
	let_lanes_send();
}

void answers_revoke_all(void)
{
	if (!count)
		return;
	for (unsigned i = 0; i < GENERATIONS; i++)
		atomic_fetch_add(&generations[i], 1);
	let_lanes_send();
}

void answers_size(size_t *entries, size_t *size)
{
	*entries = count;
	*size = bytes;
}
