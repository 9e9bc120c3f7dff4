/* The registered inodes.
 *
 * Python alone adds and retires entries. Opens are counted here only: up by the lanes and `table_acquire`, down by the
 * lanes, or by Python where the handle writes: its RELEASE goes to Python, and until Python has dealt with it the inode
 * keeps its file. A retired entry takes no new opens by the lanes, and goes when its last open ends (`take_drained`).
 *
 * With a backing id the kernel reads and writes the file itself (passthrough), and the descriptor here is for looking at
 * its mtime. Without one (0) the lanes do (bytes.c): the file is opened for writing for as long as the inode is open
 * for writing, and no longer, so that writers can be seen (Python takes a lease). Files are handed over with descriptors
 * that only read. WRITEs fill room on disk that Python has reserved and granted; without it they go to Python.
 *
 * Revocation. A READ of a handle that is counted here (MARK_FAST) needs none: the file stays until its last close, as in
 * passthrough. For opens that Python counts itself it may lend a file, under the inode's number with LENT: READs of all
 * handles without MARK_FAST are answered from that. It may take the file back, and change it, at any time. So such a READ
 * is answered only if `table_unuse` finds, after the bytes were read, that the entry was not retired: bytes that were read
 * before that are those of before the change. Else the request goes to Python. An entry in use is freed last.
 * A file that is sent to the disk is in use, too, but not open for writing: that could delay those who look for writers.
 *
 * What a predecessor has left open may have no file here, as that was removed, or cannot be opened now. Its opens count all
 * the same; the kernel reads on where it does so itself, and what comes here goes to Python, which knows what was open.
 *
 * A file may be lent while it is being filled. Python says which of its pages are there (`table_fill`), each once its bytes
 * are; READs of others go to Python. A page that is there stays: to end that, all of the file is taken back.
 *
 * Entries are spread over stripes, each with a lock of its own.
 */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUCKETS 16384u
#define STRIPES 64u
#define BUCKETS_EACH (BUCKETS / STRIPES)

struct entry {
	struct entry *next;
	uint64_t ino;
	int64_t valid_until_ns; /* CLOCK_MONOTONIC; past it an OPEN goes to Python */
	int64_t stamp_ns;	/* mtime of the file as we left it: another one means that somebody else wrote to it */
	uint32_t opens;
	uint32_t writers; /* those of `opens` that write */
	uint32_t users;	  /* READs, WRITEs and write-outs under way */
	uint32_t filling; /* those of `users` that write */
	int32_t backing_id;
	int fd;	      /* -1: there is none, see above */
	int write_fd; /* -1: not open for writing, or the kernel or Python writes */
	uint64_t granted_bytes; /* that WRITEs may fill */
	uint64_t filling_bytes; /* that WRITEs under way were given of it */
	struct slot *slot; /* NULL: there is no estate, or the file is lent */
	uint64_t run_start, run_end; /* what was written in sequence, and has not been sent to the disk */
	uint64_t fill_size;  /* of a file that is being filled: its bytes, once it is whole */
	uint64_t fill_pages; /* how many `fill` tells of */
	unsigned char *fill; /* a bit for each that is there; NULL: all is */
	atomic_ullong read_since; /* bytes, and opens, that lanes answered since `take_busy` last looked */
	uint32_t opened_since;
	bool retired;
	bool inherited; /* opens of a predecessor are, or were, among them */
	bool gone;    /* in no list any more; freed by the last user */
	bool touched; /* opened since `take_touched` last looked */
	bool shown;   /* an open has been answered: what the kernel caches since is of this file */
	bool notice;  /* tell Python of the next open (see take_noticed) */
};

struct stripe { /* of BUCKETS_EACH buckets side by side */
	_Alignas(64) pthread_mutex_t lock;
	bool touched; /* there may be entries that are */
};

static struct stripe stripes[STRIPES] = { [0 ... STRIPES - 1] = { .lock = PTHREAD_MUTEX_INITIALIZER } };
static struct entry *table[BUCKETS];

static atomic_ullong served_opens; /* of files without a backing id */

static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *drained; /* retired, without opens, not yet taken by Python */
static uint64_t noticed[NOTICES]; /* opened inodes that Python wanted to hear of; more are dropped */
static unsigned noticed_count;
int drained_fd = -1;

static unsigned bucket_of(uint64_t ino)
{
	return (unsigned)((ino * 0x9E3779B97F4A7C15ull) >> 50);
}

static struct stripe *stripe_of(uint64_t ino)
{
	return &stripes[bucket_of(ino) / BUCKETS_EACH];
}

static pthread_mutex_t *lock_of(uint64_t ino)
{
	return &stripe_of(ino)->lock;
}

/* Return where the entry of an inode is, or would be; its stripe is locked. */
static struct entry **slot_of(uint64_t ino)
{
	struct entry **slot = &table[bucket_of(ino)];
	while (*slot && (*slot)->ino != ino)
		slot = &(*slot)->next;
	return slot;
}

static struct entry **lock_slot(uint64_t ino)
{
	pthread_mutex_lock(lock_of(ino));
	return slot_of(ino);
}

static void unlock_slot(uint64_t ino)
{
	pthread_mutex_unlock(lock_of(ino));
}

/* An entry is opened; its stripe is locked. */
static void touch(struct entry *e)
{
	e->touched = stripe_of(e->ino)->touched = true;
}

static bool intact(const struct entry *e)
{
	struct stat st; /* fstat of an open local file does no I/O */
	return fstat(e->fd, &st) == 0 && st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec == e->stamp_ns;
}

/* The entry is in no list any more; its stripe is locked. Returns it if it is to be freed, without the lock. */
static struct entry *drop(struct entry *e)
{
	e->gone = true;
	estate_give(e->slot);
	e->slot = NULL;
	return e->users ? NULL : e;
}

static void free_entry(struct entry *e)
{
	if (!e)
		return;
	if (e->fd >= 0)
		close(e->fd);
	if (e->write_fd >= 0)
		close(e->write_fd);
	free(e->fill);
	free(e);
}

static void count_open(const struct entry *e)
{
	if (!e->backing_id)
		atomic_fetch_add_explicit(&served_opens, 1, memory_order_relaxed);
}

unsigned long long table_served_opens(void)
{
	return atomic_load_explicit(&served_opens, memory_order_relaxed);
}

/* Open the file for those that write, unless the kernel writes. The stripe is locked: no disk is waited for, as the file is
 * open already. If it cannot be opened (EMFILE), WRITEs go to Python until one more opens the inode for writing: it is
 * not to be open in two modes at once. */
static void begin_writing(struct entry *e)
{
	char path[40];
	if (e->backing_id || e->write_fd >= 0 || e->fd < 0)
		return;
	snprintf(path, sizeof path, "/proc/self/fd/%d", e->fd);
	e->write_fd = open(path, O_RDWR | O_CLOEXEC);
}

int table_register(const struct registration *r)
{
	struct entry *e = calloc(1, sizeof *e);
	if (!e)
		return ENOMEM;
	*e = (struct entry){ .ino = r->ino, .backing_id = r->backing_id, .stamp_ns = r->stamp_ns, .valid_until_ns = r->valid_until_ns,
			     .notice = r->notice, .write_fd = -1, .slot = r->inherited, .retired = r->retired, .inherited = r->inherited };
	if (r->filling_bytes) {
		e->fill_size = r->filling_bytes;
		e->fill_pages = (r->filling_bytes + FILL_BYTES - 1) / FILL_BYTES;
		if (!(e->fill = calloc(e->fill_pages / 8 + 1, 1))) {
			free(e);
			return ENOMEM;
		}
	}
	e->fd = fcntl(r->fd, F_DUPFD_CLOEXEC, 3);
	if (e->fd < 0 && !r->inherited) {
		const int error = errno;
		free(e->fill);
		free(e);
		return error;
	}
	if (e->slot) { /* what the kernel has open, it knows how to read */
		e->retired |= e->fd < 0;
		e->opens = (uint32_t)(estate_counts(e->slot) >> 32);
		e->writers = (uint32_t)estate_counts(e->slot);
		e->shown = true;
		if (e->writers)
			begin_writing(e);
	} else if (estate_here() && !(r->ino & LENT)) {
		struct stat st;
		if (fstat(e->fd, &st) < 0 || !(e->slot = estate_take(r->ino, r->backing_id, st.st_ino))) {
			free_entry(e);
			return ENFILE;
		}
	}
	struct entry **slot = lock_slot(r->ino);
	const bool taken = *slot != NULL;
	if (!taken)
		*slot = e;
	unlock_slot(r->ino);
	if (taken) {
		if (!r->inherited)
			estate_give(e->slot);
		free_entry(e);
	}
	return taken ? EEXIST : 0;
}

/* Return the descriptor that is to be closed, as nobody writes any more; -1: none. The stripe is locked. */
static int end_writing(struct entry *e)
{
	const int fd = e->writers || e->filling ? -1 : e->write_fd;
	if (fd >= 0)
		e->write_fd = -1;
	return fd;
}

uint64_t table_acquire(uint64_t ino, int64_t valid_until_ns, bool writing)
{
	uint64_t fh = 0;
	struct entry *e = *lock_slot(ino);
	if (e && (!e->retired || e->opens)) {
		if (writing)
			begin_writing(e);
		e->opens++;
		e->writers += writing;
		touch(e);
		e->valid_until_ns = valid_until_ns;
		count_open(e);
		fh = MARK | MARK_FAST | (writing ? MARK_WRITE : 0) | ino;
	}
	unlock_slot(ino);
	return fh;
}

/* Say how the kernel is to read. What it has cached of the inode may be of before the file was registered, or damage that
 * was mended since: the first open drops that. The stripe is locked. */
static void describe(struct entry *e, struct open_reply *reply)
{
	reply->backing_id = e->backing_id;
	reply->open_flags |= e->backing_id ? OPEN_PASSTHROUGH : e->shown ? OPEN_KEEP_CACHE : 0;
	e->shown = true;
}

void table_answering(uint64_t ino, uint64_t unique, bool writing)
{
	struct entry *e = *lock_slot(ino);
	if (e)
		estate_count(e->slot, unique, 1, writing);
	unlock_slot(ino);
}

bool table_open(uint64_t ino, uint64_t unique, struct open_reply *reply)
{
	bool found = false, told = false;
	struct entry *e = *lock_slot(ino);
	if (e && !e->retired && now_ns() < e->valid_until_ns && (e->opens || intact(e))) {
		e->opens++;
		estate_count(e->slot, unique, 1, 0);
		touch(e);
		e->opened_since++;
		describe(e, reply);
		count_open(e);
		found = true;
		if (e->notice) {
			pthread_mutex_lock(&report_lock);
			if (noticed_count < NOTICES) {
				e->notice = false;
				noticed[noticed_count++] = ino;
				told = true;
			}
			pthread_mutex_unlock(&report_lock);
		}
	}
	unlock_slot(ino);
	if (told)
		tell(drained_fd);
	return found;
}

static bool are_among(uint64_t opens, uint64_t writers, bool writing)
{
	return writing ? writers : opens > writers;
}

/* Count down an open of that kind, and return whether there was one: never another one's. It may not have been answered. */
static bool count_down(uint64_t ino, uint64_t unique, bool writing, bool of_predecessor)
{
	bool report = false, found = false;
	int unused_fd = -1;
	struct entry **slot = lock_slot(ino), *e = *slot;
	if (e && are_among(e->opens, e->writers, writing) && (e->inherited || !of_predecessor)) {
		found = true;
		e->writers -= writing;
		const uint64_t noted = e->slot ? estate_counts(e->slot) : 0;
		if (are_among(noted >> 32, (uint32_t)noted, writing))
			estate_count(e->slot, unique, -1, writing ? -1 : 0);
		if (!e->writers)
			e->granted_bytes = 0;
		unused_fd = end_writing(e);
		if (--e->opens == 0 && e->retired) {
			*slot = e->next;
			pthread_mutex_lock(&report_lock);
			e->next = drained;
			drained = e;
			pthread_mutex_unlock(&report_lock);
			report = true;
		}
	}
	unlock_slot(ino);
	if (unused_fd >= 0)
		close(unused_fd);
	if (report)
		tell(drained_fd);
	return found;
}

/* One that a predecessor has read, and not answered, is sent again. What it ends was inherited, unless it was counted down,
 * and its file given up, by then: what is open now was opened here. */
bool table_released(uint64_t ino, uint64_t unique, bool writing)
{
	return count_down(ino, unique, writing, unique & RESENT);
}

void table_not_opened(uint64_t ino, uint64_t unique, bool writing)
{
	count_down(ino, unique, writing, false);
}

void table_restamp(uint64_t ino, int64_t stamp_ns, int64_t valid_until_ns)
{
	struct entry *e = *lock_slot(ino);
	if (e) {
		if (stamp_ns >= 0)
			e->stamp_ns = stamp_ns;
		e->valid_until_ns = valid_until_ns;
	}
	unlock_slot(ino);
}

int table_retire(uint64_t ino, bool only_idle)
{
	int id = 0;
	struct entry *gone = NULL;
	struct entry **slot = lock_slot(ino), *e = *slot;
	if (e && e->opens && only_idle) {
		id = -1;
	} else if (e) {
		e->retired = true;
		if (!e->opens) {
			*slot = e->next;
			id = e->backing_id;
			gone = drop(e);
		}
	}
	unlock_slot(ino);
	free_entry(gone);
	return id;
}

void table_describe(uint64_t ino, struct open_reply *reply)
{
	struct entry *e = *lock_slot(ino);
	if (e)
		describe(e, reply);
	unlock_slot(ino);
}

long table_opens(uint64_t ino)
{
	struct entry *e = *lock_slot(ino);
	const long opens = e ? (long)e->opens : -1;
	unlock_slot(ino);
	return opens;
}

bool table_intact(uint64_t ino)
{
	struct entry *e = *lock_slot(ino);
	const bool result = e && intact(e);
	unlock_slot(ino);
	return result;
}

/* ------------------------------------------------------------------ files in use */

struct entry *table_use(uint64_t ino, bool fast, bool writing, uint64_t room_bytes)
{
	if (!fast)
		ino |= LENT;
	struct entry *e = *lock_slot(ino);
	if (e && (writing ? e->write_fd : e->fd) >= 0 && e->granted_bytes >= room_bytes) {
		e->users++;
		e->filling += writing;
		e->granted_bytes -= room_bytes;
		e->filling_bytes += room_bytes;
	} else {
		e = NULL;
	}
	unlock_slot(ino);
	return e;
}

/* Whether a file has all of a range that it has at all; its stripe is locked. */
static bool is_filled(const struct entry *e, uint64_t offset, uint64_t size)
{
	const uint64_t end = (offset + size + FILL_BYTES - 1) / FILL_BYTES;
	for (uint64_t page = offset / FILL_BYTES; page < end && page < e->fill_pages; page++)
		if (!(e->fill[page / 8] & 1u << page % 8))
			return false;
	return true;
}

struct entry *table_use_read(uint64_t ino, bool fast, uint64_t offset, uint64_t size)
{
	if (!fast)
		ino |= LENT;
	struct entry *e = *lock_slot(ino);
	if (e && (e->fd < 0 || (e->fill && !is_filled(e, offset, size))))
		e = NULL;
	if (e)
		e->users++;
	unlock_slot(ino);
	return e;
}

bool table_fill(uint64_t ino, uint64_t first, uint64_t count)
{
	struct entry *e = *lock_slot(ino | LENT);
	const bool filling = e && e->fill;
	for (uint64_t page = first; filling && page < e->fill_pages && page - first < count; page++)
		e->fill[page / 8] |= (unsigned char)(1u << page % 8);
	unlock_slot(ino | LENT);
	return filling;
}

bool entry_is_cut(const struct entry *e, uint64_t offset, uint64_t size, uint64_t got)
{
	return e->fill && got < size && offset + got < e->fill_size;
}

int entry_fd(const struct entry *e, bool writing)
{
	return writing ? e->write_fd : e->fd; /* neither changes while the entry is in use */
}

bool table_unuse(struct entry *e, bool writing, uint64_t room_bytes)
{
	const uint64_t ino = e->ino;
	pthread_mutex_lock(lock_of(ino));
	const bool live = !e->retired;
	e->filling_bytes -= room_bytes;
	e->filling -= writing;
	const int unused_fd = end_writing(e);
	struct entry *gone = --e->users == 0 && e->gone ? e : NULL;
	unlock_slot(ino);
	if (unused_fd >= 0)
		close(unused_fd);
	free_entry(gone);
	return live;
}

uint64_t table_wrote(struct entry *e, uint64_t offset, uint64_t size)
{
	pthread_mutex_lock(lock_of(e->ino));
	if (offset - e->run_end > MOST_BYTES) /* a gap of one WRITE is one that went to Python */
		e->run_start = offset;
	e->run_end = offset + size;
	const uint64_t run = e->run_end - e->run_start;
	if (run >= RUN_BYTES)
		e->run_start = e->run_end;
	unlock_slot(e->ino);
	return run >= RUN_BYTES ? run : 0;
}

bool table_grant(uint64_t ino, uint64_t more_bytes)
{
	struct entry *e = *lock_slot(ino);
	const bool given = e && e->writers && e->write_fd >= 0;
	if (given)
		e->granted_bytes += more_bytes;
	unlock_slot(ino);
	return given;
}

int64_t table_granted(uint64_t ino, bool take_back)
{
	struct entry *e = *lock_slot(ino);
	int64_t bytes = -1;
	if (e && e->write_fd >= 0) {
		if (take_back)
			e->granted_bytes = 0;
		bytes = (int64_t)(e->granted_bytes + e->filling_bytes);
	}
	unlock_slot(ino);
	return bytes;
}

/* ------------------------------------------------------------------ reports */

bool take_drained(struct drained *found)
{
	pthread_mutex_lock(&report_lock);
	struct entry *e = drained;
	if (e)
		drained = e->next;
	pthread_mutex_unlock(&report_lock);
	if (!e)
		return false;
	*found = (struct drained){ e->ino, e->backing_id };
	pthread_mutex_lock(lock_of(found->ino));
	e = drop(e);
	unlock_slot(found->ino);
	free_entry(e);
	return true;
}

unsigned take_noticed(uint64_t *found)
{
	pthread_mutex_lock(&report_lock);
	const unsigned count = noticed_count;
	memcpy(found, noticed, count * sizeof *found);
	noticed_count = 0;
	pthread_mutex_unlock(&report_lock);
	return count;
}

/* Add the touched ones of a stripe, which is locked, to a list; false: no memory, and the rest stays marked. */
static bool add_touched(unsigned stripe, uint64_t **list, size_t *count, size_t *room)
{
	for (unsigned i = stripe * BUCKETS_EACH; i < (stripe + 1) * BUCKETS_EACH; i++)
		for (struct entry *e = table[i]; e; e = e->next) {
			if (!e->touched)
				continue;
			if (*count == *room) {
				uint64_t *more = realloc(*list, 2 * *room * sizeof *more);
				if (!more)
					return false;
				*list = more;
				*room *= 2;
			}
			e->touched = false;
			(*list)[(*count)++] = e->ino;
		}
	return true;
}

size_t take_touched(uint64_t **found)
{
	size_t count = 0, room = 1024;
	uint64_t *list = malloc(room * sizeof *list);
	for (unsigned i = 0; list && i < STRIPES; i++) {
		struct stripe *s = &stripes[i];
		pthread_mutex_lock(&s->lock);
		if (s->touched)
			s->touched = !add_touched(i, &list, &count, &room);
		pthread_mutex_unlock(&s->lock);
	}
	*found = list;
	return count;
}

void table_was_read(struct entry *e, uint64_t bytes)
{
	atomic_fetch_add_explicit(&e->read_since, bytes, memory_order_relaxed);
}

size_t take_busy(struct busy **found)
{
	size_t count = 0, room = 1024;
	struct busy *list = malloc(room * sizeof *list);
	for (unsigned i = 0; list && i < BUCKETS; i++) {
		pthread_mutex_lock(&stripes[i / BUCKETS_EACH].lock);
		for (struct entry *e = table[i]; e; e = e->next) {
			if (!e->opened_since && !atomic_load_explicit(&e->read_since, memory_order_relaxed))
				continue;
			if (count == room) {
				struct busy *more = realloc(list, 2 * room * sizeof *list);
				if (!more)
					break; /* the rest is counted at the next call */
				list = more;
				room *= 2;
			}
			const uint64_t bytes = atomic_exchange_explicit(&e->read_since, 0, memory_order_relaxed);
			list[count++] = (struct busy){ e->ino & ~LENT, e->opened_since, bytes };
			e->opened_since = 0;
		}
		pthread_mutex_unlock(&stripes[i / BUCKETS_EACH].lock);
	}
	*found = list;
	return count;
}
