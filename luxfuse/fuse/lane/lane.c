/* Threads that read /dev/fuse, and answer what needs no decision without the interpreter lock.
 *
 * OPEN for reading of an inode that Python has registered and whose freshness has not run out, RELEASE of such a handle,
 * READ and WRITE of files that the kernel does not read itself (bytes.c), LOOKUP and GETATTR of what Python has said
 * (answers.c, missing.c), FORGET (inode numbers are persistent here, so lookup counts mean nothing), and the questions for file
 * capabilities, which come with writes, and for access control lists, which `ls -l` asks of each file: there are none of
 * either. INTERRUPT goes to Python by a way of its own, everything else to the queue, and so to pyfuse3. libfuse writes its
 * replies straight to the device.
 *
 * As many lanes as there is work: one more begins when all but one wait for a disk, up to MOST_LANES, and those beyond
 * `resting` end when they have not been needed for SPARE_S: to begin and end one costs as much as some reads. All read the
 * same descriptor, because libfuse answers on that one; the kernel wakes one for each request.
 *
 * They can be stopped, for another daemon to read the device: each answers what it has read, and reads no more. A signal
 * wakes those that wait for a request. One that comes just before a lane begins to wait wakes nobody, so the caller asks
 * again until none is left.
 */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CAPABILITY "security.capability"
#define ACLS "system.posix_acl_"

#define SETATTR_CTIME (1u << 10)
#define SETATTR_KILL_SUIDGID (1u << 11)
#define OPEN_KILL_SUIDGID (1u << 0)

#ifndef SPARE_S
#define SPARE_S 5 /* less in a test, so that lanes end */
#endif

static int device_fd = -1;
static unsigned resting = 1; /* lanes that stay */
bool dataplane;
atomic_bool ended;

static struct lane lanes[MOST_LANES];
static pthread_mutex_t lanes_lock = PTHREAD_MUTEX_INITIALIZER; /* to begin or end one */
static bool in_use[MOST_LANES];
static pthread_t threads[MOST_LANES]; /* of those in use: a lane ends only after it has said, under the lock, that it does */
static atomic_bool stopping;

/* Lanes that run, in the upper half, and those of them that wait for a disk: in one word, as each is judged by the other,
 * and all lanes change it for each request that may wait. The upper half is changed under the lock only. */
static _Alignas(64) atomic_ullong population;
#define ONE_MORE (1ull << 32)
static atomic_llong needed_s; /* when more than `resting` were last of use */

static void *run(void *lane);

static unsigned long long count_of(atomic_ullong *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

void count_up(atomic_ullong *counter, unsigned long long by)
{
	/* Only one thread changes it. */
	atomic_store_explicit(counter, count_of(counter) + by, memory_order_relaxed);
}

struct lane_sums lanes_sum(void)
{
	struct lane_sums sums = { 0 };
	for (unsigned i = 0; i < MOST_LANES; i++) {
		sums.requests += count_of(&lanes[i].requests);
		sums.opens += count_of(&lanes[i].opens);
		sums.reads += count_of(&lanes[i].reads);
		sums.read_bytes += count_of(&lanes[i].read_bytes);
		sums.writes += count_of(&lanes[i].writes);
		sums.lookups += count_of(&lanes[i].lookups);
		sums.getattrs += count_of(&lanes[i].getattrs);
	}
	return sums;
}

static unsigned running_of(unsigned long long p)
{
	return (unsigned)(p >> 32);
}

static unsigned blocked_of(unsigned long long p)
{
	return (unsigned)(p & (ONE_MORE - 1));
}

void lanes_count(unsigned *run, unsigned *wait)
{
	const unsigned long long now = atomic_load(&population);
	*run = running_of(now);
	*wait = blocked_of(now);
}

/* ------------------------------------------------------------------ how many */

/* Begin one more; `lanes_lock` is held. Returns an errno. */
static int begin_lane(void)
{
	pthread_attr_t attributes;
	unsigned i = 0;
	while (i < MOST_LANES && in_use[i])
		i++;
	if (i == MOST_LANES)
		return EAGAIN;
	if (!lanes[i].request && !(lanes[i].request = malloc(REQUEST_CAPACITY)))
		return ENOMEM;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	const int error = pthread_create(&threads[i], &attributes, run, &lanes[i]);
	pthread_attr_destroy(&attributes);
	if (!error) {
		in_use[i] = true;
		atomic_fetch_add(&population, ONE_MORE);
	}
	return error;
}

int lanes_start(int fd, bool all)
{
	int error = 0;
	const long processors = sysconf(_SC_NPROCESSORS_ONLN);
	device_fd = fd;
	dataplane = all;
	resting = all ? (processors < 2 ? 2 : processors > 8 ? 8 : (unsigned)processors) : 1;
	pthread_mutex_lock(&lanes_lock);
	atomic_store(&stopping, false);
	while (running_of(atomic_load(&population)) < resting && !error)
		error = begin_lane();
	if (running_of(atomic_load(&population)))
		error = 0;
	pthread_mutex_unlock(&lanes_lock);
	return error;
}

static void wake_up(int number)
{
	(void)number; /* the read that it comes to is broken off */
}

unsigned lanes_stop(void)
{
	const struct sigaction action = { .sa_handler = wake_up }; /* without SA_RESTART */
	sigaction(SIGRTMIN, &action, NULL);
	atomic_store(&stopping, true);
	pthread_mutex_lock(&lanes_lock);
	for (unsigned i = 0; i < MOST_LANES; i++)
		if (in_use[i])
			pthread_kill(threads[i], SIGRTMIN);
	pthread_mutex_unlock(&lanes_lock);
	return running_of(atomic_load(&population));
}

/* A lane ends; returns whether it does: where lanes were started again before it did, it goes on. */
static bool leave(const struct lane *lane, bool alive)
{
	pthread_mutex_lock(&lanes_lock);
	const bool ends = !alive || atomic_load(&stopping);
	if (ends) {
		atomic_fetch_sub(&population, ONE_MORE);
		in_use[lane - lanes] = false;
	}
	pthread_mutex_unlock(&lanes_lock);
	return ends;
}

static int64_t now_s(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return t.tv_sec;
}

/* Whether there is one lane beside those that wait, and the one that asks; it is begun if need be. */
static bool have_another(void)
{
	unsigned long long now = atomic_load(&population);
	if (blocked_of(now) + 1 < running_of(now))
		return true;
	if (running_of(now) == MOST_LANES)
		return false;
	pthread_mutex_lock(&lanes_lock);
	now = atomic_load(&population);
	const bool have = blocked_of(now) + 1 < running_of(now) || begin_lane() == 0;
	pthread_mutex_unlock(&lanes_lock);
	return have;
}

bool may_block(void)
{
	unsigned long long now;
	do {
		if (!have_another())
			return false;
		now = atomic_load(&population);
	} while (blocked_of(now) + 1 >= running_of(now) || !atomic_compare_exchange_weak(&population, &now, now + 1));
	const int64_t s = blocked_of(now) + 2 > resting ? now_s() : 0;
	if (s && atomic_load_explicit(&needed_s, memory_order_relaxed) != s)
		atomic_store_explicit(&needed_s, s, memory_order_relaxed);
	return true;
}

void has_blocked(void)
{
	atomic_fetch_sub(&population, 1);
}

/* Whether this lane is one too many, and ends; it is not counted any more then. */
static bool is_spare(const struct lane *lane)
{
	unsigned long long now = atomic_load_explicit(&population, memory_order_relaxed);
	if (running_of(now) <= resting || now_s() - atomic_load_explicit(&needed_s, memory_order_relaxed) < SPARE_S)
		return false;
	pthread_mutex_lock(&lanes_lock);
	bool spare;
	now = atomic_load(&population);
	do
		spare = running_of(now) - blocked_of(now) > resting;
	while (spare && !atomic_compare_exchange_weak(&population, &now, now - ONE_MORE));
	if (spare)
		in_use[lane - lanes] = false;
	pthread_mutex_unlock(&lanes_lock);
	return spare;
}

/* ------------------------------------------------------------------ answers */

int send_reply(uint64_t unique, int error, const void *payload, size_t size)
{
	struct fuse_out_header out = { (uint32_t)(sizeof out + size), -error, unique };
	struct iovec iov[2] = { { &out, sizeof out }, { (void *)payload, size } };
	return writev(device_fd, iov, size ? 2 : 1) < 0 ? -errno : 0;
}

bool lane_answer_open(uint64_t ino, uint64_t unique, bool *passthrough, atomic_ullong *counter)
{
	struct open_reply reply = { MARK | MARK_FAST | ino, OPEN_NOFLUSH, 0 };
	if (!table_open(ino, unique, &reply))
		return false;
	*passthrough = reply.backing_id != 0;
	if (counter)
		count_up(counter, 1); /* before the opener can ask for the sum */
	if (send_reply(unique, 0, &reply, sizeof reply) < 0)
		table_not_opened(ino, unique, false); /* the opener is gone, and no RELEASE will come */
	estate_answered();
	return true;
}

static bool answer_open(struct lane *lane, const struct fuse_in_header *in, const struct fuse_open_in *arg)
{
	return (arg->flags & O_ACCMODE) == O_RDONLY && !(arg->flags & O_TRUNC) &&
	       lane_answer_open(in->nodeid, in->unique, &lane->seen.passthrough, &lane->opens);
}

/* What to answer for an attribute that no file can have, 0 for others. Programs take EOPNOTSUPP for the whole mount's word,
 * and need not ask about the next file; the kernel wants ENODATA where it asks for capabilities. */
static int never_there(const char *name, size_t size)
{
	if (size == sizeof CAPABILITY && !memcmp(name, CAPABILITY, size))
		return ENODATA;
	return size > sizeof ACLS && !memcmp(name, ACLS, sizeof ACLS - 1) ? EOPNOTSUPP : 0;
}

static bool answer(struct lane *lane, const void *data, size_t size)
{
	const struct fuse_in_header *in = data;
	const void *arg = in + 1;
	switch (in->opcode) {
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		return true;
	case FUSE_INTERRUPT:
		note_interrupt(data, size);
		return true;
	case FUSE_OPEN:
		return size >= sizeof *in + sizeof(struct fuse_open_in) && (answer_open(lane, in, arg) || waiting_keep(data, size));
	case FUSE_READ:
		return dataplane && answer_read(lane, data, size);
	case FUSE_WRITE:
		return dataplane && answer_write(lane, data, size);
	case FUSE_LOOKUP:
		return dataplane && (answer_lookup(lane, data, size) || answer_missing(lane, data, size));
	case FUSE_GETATTR:
		return dataplane && answer_getattr(lane, data, size);
	case FUSE_RELEASE: {
		const struct fuse_release_in *release = arg;
		if (size < sizeof *in + sizeof *release || !is_fast(release->fh))
			return false;
		if (release->fh & MARK_WRITE)
			return false; /* Python has something to do at the end of a write */
		table_released(release->fh & INODE_MASK, in->unique, false);
		send_reply(in->unique, 0, NULL, 0);
		estate_answered();
		return true;
	}
	case FUSE_GETXATTR: {
		const size_t start = sizeof *in + sizeof(struct fuse_getxattr_in);
		int error = size > start ? never_there((const char *)data + start, size - start) : 0;
		if (error)
			send_reply(in->unique, error, NULL, 0);
		return error != 0;
	}
	default:
		return false;
	}
}

/* With FUSE_HANDLE_KILLPRIV_V2 it is ours to clear set-id bits. libfuse 3.14 drops the kernel's word for it, so it is said
 * with what libfuse does pass on: a change of ctime, which no kernel asks for otherwise, and a spare flag of OPEN. Before a
 * write by somebody without CAP_FSETID to a file with such bits the kernel sends a SETATTR that changes nothing. */
static void say_kill(void *data, size_t size)
{
	const struct fuse_in_header *in = data;
	void *arg = (char *)data + sizeof *in;
	if (in->opcode == FUSE_SETATTR && size >= sizeof *in + sizeof(struct fuse_setattr_in)) {
		struct fuse_setattr_in *setattr = arg;
		const uint32_t changes = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME | SETATTR_CTIME;
		if (setattr->valid & SETATTR_KILL_SUIDGID || !(setattr->valid & changes))
			setattr->valid |= SETATTR_CTIME;
	} else if (in->opcode == FUSE_OPEN && size >= sizeof *in + sizeof(struct fuse_open_in)) {
		uint32_t *flags = arg; /* struct fuse_open_in: flags, open_flags (named otherwise in old headers) */
		if (flags[1] & OPEN_KILL_SUIDGID)
			flags[0] |= FLAG_KILL_SUIDGID;
	}
}

static void *run(void *argument)
{
	struct lane *lane = argument;
	char *buffer = lane->request;
	operation_number = (unsigned)(lane - lanes);
	bool alive = true;
	while (alive && !(atomic_load(&stopping) && leave(lane, alive))) {
		ssize_t n = read(device_fd, buffer, REQUEST_CAPACITY);
		if (n < 0) {
			if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
				continue;
			alive = false; /* ENODEV: unmounted or aborted */
			continue;
		}
		if (n == 0) {
			alive = false; /* no device, but a test's socket that was closed */
			continue;
		}
		if ((size_t)n < sizeof(struct fuse_in_header))
			continue;
		count_up(&lane->requests, 1);
		const int64_t began_ns = atomic_load_explicit(&tracing, memory_order_relaxed) ? now_ns() : 0;
		if (answer(lane, buffer, (size_t)n)) {
			if (began_ns)
				trace_note(lane, buffer, began_ns);
		} else {
			say_kill(buffer, (size_t)n);
			if (!enqueue(buffer, (size_t)n))
				send_reply(((struct fuse_in_header *)buffer)->unique, ENOMEM, NULL, 0);
		}
		if (is_spare(lane))
			return NULL;
	}
	if (!alive) {
		leave(lane, alive);
		atomic_store(&ended, true);
		wake();
	}
	return NULL;
}
