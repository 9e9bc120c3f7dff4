/* LOOKUP of names that are missing, in directories of which Python knows all names.
 *
 * Python offers a directory with the names that it has (`missing_offer`): a set of their hashes. As long as what it said
 * holds, a name whose hash is not in the set is missing, and a lane says so. Before a name may come to be, Python revokes it,
 * as it does with names that are there (answers.c): here that adds its hash to the set. So the set only grows, with names
 * that are removed again, too, and two names of one hash do no harm: what is in the set goes to Python.
 *
 * A lane looks and sends under the lock of the directory's place, under which revoking changes the set: so when revoking
 * returns, all replies of before are with the kernel, and no later one is sent.
 *
 * Each directory has one place in the table, and takes it from another one. Only Python adds, and takes out, one thread at
 * a time (it has the interpreter lock): so it reads without locks. What would become too large is forgotten.
 */
#include "lane.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#ifndef MISSING_DIRECTORIES
#define MISSING_DIRECTORIES 1024u /* fewer in a test, so that they take places from each other */
#endif
#ifndef MISSING_NAMES
#define MISSING_NAMES 16384u /* of one directory */
#endif
#define MISSING_BUDGET (16u << 20) /* bytes of all sets */
#define LEAST_PLACES 64u
#define NAME_BYTES 255u /* longer ones are refused, in Python */

struct directory {
	uint64_t ino; /* 0: none */
	int64_t answer_until_ns, valid_until_ns;
	uint32_t count, places; /* of `hashes`; a power of two, at most half of them taken */
	uint64_t *hashes;	/* 0: a free place */
	_Alignas(64) pthread_mutex_t lock;
};

static struct directory directories[MISSING_DIRECTORIES] = { [0 ... MISSING_DIRECTORIES - 1] = { .lock = PTHREAD_MUTEX_INITIALIZER } };
static unsigned known; /* directories in the table */
static size_t taken_bytes;

static struct directory *place_of(uint64_t ino)
{
	return &directories[(unsigned)((ino * 0x9E3779B97F4A7C15ull) >> 40) % MISSING_DIRECTORIES];
}

static uint64_t hash_of(const char *name, size_t size)
{
	uint64_t hash = 0xCBF29CE484222325ull; /* FNV-1a */
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ (unsigned char)name[i]) * 0x100000001B3ull;
	return hash ? hash : 1;
}

/* Where a hash is, or belongs. */
static uint64_t *find(uint64_t *hashes, uint32_t places, uint64_t hash)
{
	uint32_t at = (uint32_t)((hash * 0x9E3779B97F4A7C15ull) >> 32) & (places - 1);
	while (hashes[at] && hashes[at] != hash)
		at = (at + 1) & (places - 1);
	return &hashes[at];
}

/* ------------------------------------------------------------------ the lanes' side */

static bool is_plain(const char *name, size_t length)
{
	return length && length <= NAME_BYTES && !(name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')));
}

bool answer_missing(struct lane *lane, const void *request, size_t size)
{
	const struct fuse_in_header *in = request;
	const char *name = (const char *)(in + 1);
	const size_t room = size - sizeof *in, length = strnlen(name, room);
	if (length + 1 != room || !is_plain(name, length))
		return false;
	struct directory *d = place_of(in->nodeid);
	const uint64_t hash = hash_of(name, length);
	bool missing = false;
	pthread_mutex_lock(&d->lock);
	if (d->ino && d->ino == in->nodeid) {
		const int64_t now = now_ns();
		missing = now < d->answer_until_ns && !*find(d->hashes, d->places, hash);
		if (missing) {
			const int64_t left = d->valid_until_ns - now;
			const struct fuse_entry_out out = { .entry_valid = (uint64_t)(left / 1000000000),
							    .entry_valid_nsec = (uint32_t)(left % 1000000000) };
			count_up(&lane->lookups, 1);
			lane->seen.ino = 0;
			LANE_PAUSE();
			send_reply(in->unique, 0, &out, sizeof out);
		}
	}
	pthread_mutex_unlock(&d->lock);
	return missing;
}

/* ------------------------------------------------------------------ Python's side */

/* Give a place another directory and set, or none; what it had is freed. */
static void put(struct directory *d, uint64_t ino, uint64_t *hashes, uint32_t places, uint32_t count)
{
	uint64_t *before = d->hashes;
	taken_bytes += (ino ? places * sizeof *hashes : 0) - (d->ino ? d->places * sizeof *hashes : 0);
	known += (ino != 0) - (d->ino != 0);
	pthread_mutex_lock(&d->lock);
	if (d->ino != ino)
		d->answer_until_ns = 0;
	d->ino = ino;
	d->hashes = hashes;
	d->places = places;
	d->count = count;
	pthread_mutex_unlock(&d->lock);
	free(before);
}

static void forget(struct directory *d)
{
	put(d, 0, NULL, 0, 0);
}

/* Room for a set; NULL: there is none, or it is to have none. `d`: that it takes the place of. */
static uint64_t *make_set(const struct directory *d, uint32_t count, uint32_t *places)
{
	*places = LEAST_PLACES;
	while (*places < 4 * count)
		*places *= 2;
	const size_t bytes = *places * sizeof(uint64_t), freed = d->ino ? d->places * sizeof(uint64_t) : 0;
	return count <= MISSING_NAMES && taken_bytes - freed + bytes <= MISSING_BUDGET ? calloc(*places, sizeof(uint64_t)) : NULL;
}

bool missing_offer(uint64_t ino, int64_t answer_until_ns, int64_t valid_until_ns, bool named, const struct missing_name *names, size_t count)
{
	struct directory *d = place_of(ino);
	if (named) {
		uint32_t places, distinct = 0;
		uint64_t *hashes = count <= MISSING_NAMES ? make_set(d, (uint32_t)count, &places) : NULL;
		if (!hashes)
			return false;
		for (size_t i = 0; i < count; i++) {
			uint64_t hash = hash_of(names[i].name, names[i].size), *at = find(hashes, places, hash);
			distinct += !*at;
			*at = hash;
		}
		pthread_mutex_lock(&d->lock);
		d->answer_until_ns = 0; /* the time of the names before does not hold for these */
		pthread_mutex_unlock(&d->lock);
		put(d, ino, hashes, places, distinct);
	} else if (d->ino != ino) {
		return false;
	}
	pthread_mutex_lock(&d->lock);
	d->answer_until_ns = answer_until_ns;
	d->valid_until_ns = valid_until_ns;
	pthread_mutex_unlock(&d->lock);
	return true;
}

void missing_revoke(uint64_t ino, const char *name, size_t size)
{
	struct directory *d = place_of(ino);
	if (!d->ino || d->ino != ino)
		return;
	const uint64_t hash = hash_of(name, size);
	uint64_t *at = find(d->hashes, d->places, hash);
	if (*at)
		return;
	if (2 * (d->count + 1) >= d->places || d->count >= MISSING_NAMES) {
		uint32_t places;
		uint64_t *hashes = make_set(d, d->count + 1, &places);
		if (!hashes) {
			forget(d);
			return;
		}
		for (uint32_t i = 0; i < d->places; i++)
			if (d->hashes[i])
				*find(hashes, places, d->hashes[i]) = d->hashes[i];
		*find(hashes, places, hash) = hash;
		put(d, ino, hashes, places, d->count + 1);
		return;
	}
	pthread_mutex_lock(&d->lock);
	*at = hash;
	d->count++;
	pthread_mutex_unlock(&d->lock);
}

void missing_revoke_below(uint64_t ino)
{
	struct directory *d = place_of(ino);
	if (d->ino == ino)
		forget(d);
}

void missing_revoke_all(void)
{
	for (unsigned i = 0; i < MISSING_DIRECTORIES && known; i++)
		if (directories[i].ino)
			forget(&directories[i]);
}

void missing_size(size_t *count, size_t *bytes)
{
	*count = known;
	*bytes = taken_bytes;
}
