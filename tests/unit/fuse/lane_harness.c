/* Drives the lanes through a socket in place of /dev/fuse, for `test_lane_sanitized.py`; built with sanitizers.
 *
 *   lane_harness race SEED SECONDS DIRECTORY   opens, reads, writes, and a "Python" that registers, retires, changes files
 *   lane_harness fuzz SEED COUNT DIRECTORY     requests of random bytes, and real ones with something wrong
 *
 * A model of each file: its bytes all say its generation, and generations only rise. A READ that the lanes answer must be
 * of one generation, no older than the file's when the READ was sent, unless an open of the lanes holds the file. Some are
 * lent while they are filled with the next generation, page by page. Some are expected meanwhile: OPENs of them may wait for
 * their registration, and each is answered once, by a lane, or goes to Python.
 *
 * A model of each name: its size is its generation. "Python" revokes it, raises the generation, and sends word of that as it
 * would send replies and notices, through the same descriptor. No answer of an older one may be sent after that.
 *
 * A model of names that come and go in directories of which all names are known: word that one is there is sent like that,
 * after it was revoked. No answer that it is missing may be sent after that.
 */
#include "lane.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILES 8
#define DIRECTORIES 2
#define NAMES 16 /* in all of them */
#define KNOWN 3   /* directories of which all names are known */
#define ABSENT 12 /* names in these, which come and go */
#define LOOKERS 2
#define FILE_BYTES 49152
#define READERS 4
#define LARGEST (3 * FILE_BYTES) /* of files: writes beyond fail, and across are short */
#define PACKET (64 << 10)
#define BLOCK 4096
#define ROOM (4 * BLOCK)

static int kernel_end;
static unsigned long long seed;
static const char *directory;
static atomic_bool stop, all_done, racing;
static atomic_uint reading; /* readers that run */
static pthread_mutex_t loop_lock = PTHREAD_MUTEX_INITIALIZER; /* lanes are begun by the thread that answers what has waited */
static int lanes_end;
static unsigned long long floors[NAMES + ABSENT]; /* generations that word was sent of; of the receiver */
static atomic_ullong generations[FILES], answered, forwarded, opened, written, sent_out, missed, asked, unique_numbers = 16;

static void fail(const char *what, long long a, long long b)
{
	fprintf(stderr, "FAILED (seed %llu): %s: %lld %lld\n", seed, what, a, b);
	abort();
}

static unsigned rnd(unsigned *state, unsigned below)
{
	return (unsigned)rand_r(state) % below;
}

static int64_t later_ns(void)
{
	return now_ns() + 1000000000ll * 3600;
}

/* ------------------------------------------------------------------ the kernel's part: one request, one answer */

struct waiting {
	struct waiting *next;
	uint64_t unique;
	bool done, to_python;
	unsigned name; /* one more than the number of the name that is asked for; 0: of none */
	int error;
	size_t size;
	char *payload;
};

static pthread_mutex_t waiting_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t waiting_done = PTHREAD_COND_INITIALIZER;
static struct waiting *all_waiting;

static uint64_t ino_of_name(unsigned name)
{
	return 5000 + name;
}

/* An answer about a name has come from a lane. */
static void check_answer(unsigned name, int error, const char *payload, size_t size)
{
	const struct fuse_entry_out *entry = (const void *)payload;
	const struct fuse_attr_out *attr = (const void *)payload;
	if (error || (size != sizeof *entry && size != sizeof *attr))
		fail("answer about a name", error, (long long)size);
	const struct fuse_attr *found = size == sizeof *entry ? &entry->attr : &attr->attr;
	if (found->ino != ino_of_name(name) || (size == sizeof *entry && entry->nodeid != found->ino))
		fail("answer about another inode", (long long)found->ino, name);
	if (found->size < floors[name])
		fail("an answer of before a change came after it", (long long)found->size, (long long)floors[name]);
	const uint64_t valid = size == sizeof *entry ? entry->attr_valid : attr->attr_valid;
	if (valid > 3600 || (size == sizeof *entry && entry->entry_valid != valid))
		fail("holds for another time", (long long)valid, name);
}

/* A lane says that a name is missing. */
static void check_missing(unsigned name, int error, const char *payload, size_t size)
{
	const struct fuse_entry_out *entry = (const void *)payload;
	if (error || size != sizeof *entry || entry->nodeid || entry->entry_valid > 3600)
		fail("answer about a name that is missing", error, (long long)size);
	if (floors[name])
		fail("a name that is there is missing", name, 0);
	atomic_fetch_add(&missed, 1);
}

static void finish(uint64_t unique, bool to_python, int error, const char *payload, size_t size)
{
	pthread_mutex_lock(&waiting_lock);
	for (struct waiting *w = all_waiting; w; w = w->next)
		if (w->unique == unique) {
			if (w->done)
				fail("answered twice", (long long)unique, error);
			if (w->name > NAMES && !to_python)
				check_missing(w->name - 1, error, payload, size);
			else if (w->name && !to_python)
				check_answer(w->name - 1, error, payload, size);
			w->done = true;
			w->to_python = to_python;
			w->error = error;
			w->size = size;
			if (size)
				memcpy(w->payload, payload, size);
		}
	pthread_cond_broadcast(&waiting_done);
	pthread_mutex_unlock(&waiting_lock);
}

static void *receive(void *unused)
{
	static char packet[PACKET];
	(void)unused;
	for (;;) {
		const ssize_t n = recv(kernel_end, packet, sizeof packet, 0);
		const struct fuse_out_header *out = (const void *)packet;
		if (n <= 0)
			return NULL;
		if ((size_t)n < sizeof *out || out->len != (uint32_t)n)
			fail("garbled answer", n, n >= 4 ? out->len : 0);
		if (!out->unique) {
			const unsigned long long *word = (const void *)(packet + sizeof *out);
			floors[word[0]] = word[1];
			continue;
		}
		finish(out->unique, false, -out->error, packet + sizeof *out, (size_t)n - sizeof *out);
	}
}

/* What Python would be called with, which lies within the request. */
static void check_asked(const struct request *r)
{
	struct asked a;
	const char *data = r->data;
	note_current(r);
	if (!asked_of(r, &a))
		return;
	if (a.function >= PROMPT_FUNCTIONS || a.unique != current_unique || a.uid != current_uid)
		fail("another request is asked for", (long long)a.unique, (long long)current_unique);
	if (!a.name != (a.function != PROMPT_LOOKUP && a.function != PROMPT_CREATE))
		fail("a name", a.function, 0);
	if (a.name && (a.name < data + sizeof(struct fuse_in_header) || a.name + strlen(a.name) >= data + r->size))
		fail("a name beyond its request", a.function, (long long)r->size);
	if (a.set_mode < -1 || a.set_uid < -1 || a.set_gid < -1 || a.set_atime_ns < -1 || a.set_mtime_ns < -1)
		fail("attributes", (long long)a.set_atime_ns, (long long)a.set_mtime_ns);
	atomic_fetch_add(&asked, 1);
}

/* What the lanes leave to pyfuse3. */
static void *take_queue(void *unused)
{
	(void)unused;
	while (!atomic_load(&all_done)) {
		struct request *r = dequeue();
		if (!r) {
			usleep(50);
			continue;
		}
		check_asked(r);
		if (r->size >= sizeof(struct fuse_in_header))
			finish(((const struct fuse_in_header *)r->data)->unique, true, 0, NULL, 0);
		free(r->data);
		free(r);
	}
	return NULL;
}

static void request(struct waiting *w, void *packet, size_t size)
{
	struct fuse_in_header *in = packet;
	in->len = (uint32_t)size;
	in->unique = w->unique = atomic_fetch_add(&unique_numbers, 2);
	w->done = false;
	pthread_mutex_lock(&waiting_lock);
	w->next = all_waiting;
	all_waiting = w;
	pthread_mutex_unlock(&waiting_lock);
	if (send(kernel_end, packet, size, 0) != (ssize_t)size)
		fail("send", errno, 0);
	pthread_mutex_lock(&waiting_lock);
	while (!w->done)
		pthread_cond_wait(&waiting_done, &waiting_lock);
	for (struct waiting **at = &all_waiting; *at; at = &(*at)->next)
		if (*at == w) {
			*at = w->next;
			break;
		}
	pthread_mutex_unlock(&waiting_lock);
	atomic_fetch_add(w->to_python ? &forwarded : &answered, 1);
}

/* ------------------------------------------------------------------ race */

static uint64_t ino_of(unsigned file)
{
	return 100 + file;
}

static int open_file(unsigned file, int flags)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%u", directory, file);
	const int fd = open(path, flags | O_CLOEXEC, 0600);
	if (fd < 0)
		fail("open", errno, file);
	return fd;
}

static void fill(int fd, unsigned long long generation)
{
	unsigned long long words[FILE_BYTES / 64];
	for (unsigned i = 0; i < FILE_BYTES / 64; i++)
		words[i] = generation;
	for (unsigned i = 0; i < 8; i++) { /* in pieces, so that a read that is not held off finds two generations */
		if (pwrite(fd, words, sizeof words, (off_t)(i * sizeof words)) != sizeof words)
			fail("pwrite", errno, 0);
		sched_yield();
	}
}

/* The same, while the file is lent. */
static void fill_lent(uint64_t ino, int fd, unsigned long long generation)
{
	unsigned long long words[FILL_BYTES / 8];
	const struct registration lent = { .ino = ino | LENT, .fd = fd, .filling_bytes = FILE_BYTES };
	const int error = table_register(&lent);
	if (error)
		fail("lend while it is filled", error, (long long)ino);
	for (unsigned i = 0; i < FILL_BYTES / 8; i++)
		words[i] = generation;
	for (unsigned page = 0; page < FILE_BYTES / FILL_BYTES; page++) {
		if (pwrite(fd, words, sizeof words, (off_t)(page * sizeof words)) != sizeof words)
			fail("pwrite", errno, 0);
		sched_yield();
		if (!table_fill(ino, page, 1))
			fail("not being filled", (long long)ino, page);
		sched_yield();
	}
	if (table_fill(ino | 1ull << 50, 0, 1) || !table_fill(ino, FILE_BYTES / FILL_BYTES, 1000))
		fail("filled beyond", (long long)ino, 0);
}

/* Returns whether the lanes answered a WRITE of 8 bytes; else it went to Python. */
static bool write_word(uint64_t ino, uint64_t fh, uint64_t offset)
{
	struct {
		struct fuse_in_header in;
		struct fuse_write_in arg;
		unsigned long long word;
	} w = { { .opcode = FUSE_WRITE, .nodeid = ino }, { .fh = fh, .size = 8, .offset = offset }, 0 };
	char payload[PACKET];
	struct waiting waiting = { .payload = payload };
	request(&waiting, &w, sizeof w);
	if (waiting.to_python)
		return false;
	const struct fuse_write_out *out = (const void *)payload;
	if (waiting.error || waiting.size != sizeof *out || out->size != 8)
		fail("write answered", waiting.error, (long long)waiting.size);
	return true;
}

/* In place of the system's. "Python" writes two words behind the end of a file, and a gap passes for a WRITE of its own: so
 * RUN_BYTES has been written in sequence with the second word after a file was handed over, and never again. */
int sync_file_range(int fd, off_t offset, off_t size, unsigned flags)
{
	if (fcntl(fd, F_GETFD) < 0 || flags != SYNC_FILE_RANGE_WRITE)
		fail("sent to the disk", fd, flags);
	if (size < RUN_BYTES || (racing && (offset || size != RUN_BYTES)))
		fail("another range is sent to the disk", offset, size);
	atomic_fetch_add(&sent_out, 1);
	return 0;
}

/* ------------------------------------------------------------------ names */

static unsigned long long name_generations[NAMES]; /* of "Python" */

static size_t name_of(unsigned name, char *text)
{
	return (size_t)sprintf(text, "name-%u", name);
}

static uint64_t parent_of(unsigned name)
{
	return 1000 + name % DIRECTORIES;
}

static void send_word(unsigned name, unsigned long long floor)
{
	const struct {
		struct fuse_out_header out;
		unsigned long long word[2];
	} notice = { { sizeof notice, 1, 0 }, { name, floor } };
	if (send(lanes_end, &notice, sizeof notice, 0) != sizeof notice)
		fail("send notice", errno, name);
}

/* The name is revoked: it changes, and the kernel is told. */
static void change_name(unsigned name)
{
	send_word(name, ++name_generations[name]);
}

static void offer_name(unsigned name, unsigned *state)
{
	char text[32];
	const bool old = rnd(state, 4) == 0; /* too old, and of long ago */
	const struct offer said = { .parent = parent_of(name), .ino = ino_of_name(name),
				    .size = old ? 0 : name_generations[name], .valid_until_ns = old ? 1 : later_ns(),
				    .name_size = (uint16_t)name_of(name, text), .only_name = rnd(state, 8) == 0 };
	answers_offer(&said, text, rnd(state, 2));
}

static void play_with_names(unsigned *state)
{
	char text[32];
	const unsigned name = rnd(state, NAMES), directory = rnd(state, DIRECTORIES);
	switch (rnd(state, 8)) {
	case 0: /* another name of the inode, which takes its place */
		if (name_generations[name] % 2)
			answers_offer(&(struct offer){ .parent = 999, .ino = ino_of_name(name), .size = name_generations[name],
						       .valid_until_ns = later_ns(), .name_size = 5 }, "other", false);
		answers_revoke_ino(ino_of_name(name));
		change_name(name);
		break;
	case 1:
		answers_revoke(parent_of(name), text, name_of(name, text));
		if (answers_have(parent_of(name), text, name_of(name, text)))
			fail("revoked and there", name, 0);
		change_name(name);
		break;
	case 2:
		if (rnd(state, 2))
			answers_revoke_all();
		else
			answers_revoke_below(1000 + directory);
		for (unsigned i = directory; i < NAMES; i += DIRECTORIES)
			change_name(i);
		break;
	default:
		offer_name(name, state);
	}
}

static bool there[ABSENT]; /* of "Python" */

static size_t absent_name(unsigned name, char *text)
{
	return (size_t)sprintf(text, "absent-%u", name);
}

static uint64_t known_of(unsigned name)
{
	return 2000 + name % KNOWN;
}

static void offer_known(unsigned known, unsigned *state)
{
	static char texts[ABSENT][32];
	struct missing_name names[ABSENT];
	size_t count = 0;
	const bool old = rnd(state, 4) == 0; /* too old, and of long ago */
	for (unsigned name = known; name < ABSENT && !old; name += KNOWN)
		if (there[name]) {
			names[count].name = texts[count];
			names[count].size = absent_name(name, texts[count]);
			count++;
		}
	if (!missing_offer(2000 + known, old ? 1 : later_ns(), later_ns(), true, names, count))
		fail("no room", known, 0);
	if (!missing_offer(2000 + known, old ? 1 : later_ns(), later_ns(), false, NULL, 0) || missing_offer(1, later_ns(), later_ns(), false, NULL, 0))
		fail("other names than those that were given", known, 0);
}

static void set_there(unsigned name, bool is_there)
{
	there[name] = is_there;
	send_word(NAMES + name, is_there);
}

static void play_with_missing(unsigned *state)
{
	char text[32];
	const unsigned name = rnd(state, ABSENT), known = rnd(state, KNOWN);
	switch (rnd(state, 8)) {
	case 0:
	case 1:
	case 2:
		if (!there[name]) {
			missing_revoke(known_of(name), text, absent_name(name, text));
			set_there(name, true);
		}
		break;
	case 3:
	case 4:
	case 5:
		if (there[name])
			set_there(name, false);
		break;
	case 6:
		if (rnd(state, 4))
			break;
		if (rnd(state, 2))
			missing_revoke_all();
		else
			missing_revoke_below(2000 + known);
		for (unsigned i = known; i < ABSENT; i += KNOWN)
			set_there(i, true);
		break;
	default:
		offer_known(known, state);
	}
}

static void *looker(void *argument)
{
	unsigned state = (unsigned)(uintptr_t)argument;
	char payload[PACKET];
	struct waiting w = { .payload = payload };
	while (!atomic_load(&stop)) {
		const unsigned name = rnd(&state, NAMES);
		struct {
			struct fuse_in_header in;
			union {
				char name[32];
				struct fuse_getattr_in getattr;
			} arg;
		} ask = { 0 };
		w.name = name + 1;
		if (rnd(&state, 3) == 0) {
			const unsigned absent = rnd(&state, ABSENT);
			w.name = NAMES + absent + 1;
			ask.in = (struct fuse_in_header){ .opcode = FUSE_LOOKUP, .nodeid = known_of(absent) };
			request(&w, &ask, sizeof ask.in + absent_name(absent, ask.arg.name) + 1);
		} else if (rnd(&state, 2)) {
			ask.in = (struct fuse_in_header){ .opcode = FUSE_LOOKUP, .nodeid = parent_of(name) };
			request(&w, &ask, sizeof ask.in + name_of(name, ask.arg.name) + 1);
		} else {
			ask.in = (struct fuse_in_header){ .opcode = FUSE_GETATTR, .nodeid = ino_of_name(name) };
			request(&w, &ask, sizeof ask.in + sizeof ask.arg.getattr);
		}
	}
	return NULL;
}

/* Registers, retires and changes files as Python does: never while an open of the lanes holds one. */
static void *python(void *argument)
{
	unsigned state = (unsigned)(uintptr_t)argument;
	struct drained gone;
	uint64_t *touched, noticed[NOTICES];
	struct busy *busy;
	struct traced traced[64];
	unsigned long long lost;
	while (!atomic_load(&stop)) {
		const unsigned file = rnd(&state, FILES);
		const uint64_t ino = ino_of(file);
		const int fd = open_file(file, O_RDWR);
		int error;
		switch (rnd(&state, 5)) {
		case 0:
		case 1: /* change a file that nobody has open, and hand it over again */
			if (table_opens(ino) >= 0 && table_retire(ino, true) < 0)
				break;
			if (table_opens(ino) >= 0)
				break; /* retired and open */
			table_retire(ino | LENT, false);
			const bool filled = rnd(&state, 2), expected = rnd(&state, 2);
			if (expected && !waiting_expect(ino, later_ns()))
				fail("expected", file, 0);
			if (filled)
				fill_lent(ino, fd, atomic_load(&generations[file]) + 1);
			else
				fill(fd, atomic_load(&generations[file]) + 1);
			atomic_fetch_add(&generations[file], 1);
			if (expected)
				usleep(rnd(&state, 1000)); /* OPENs come that wait */
			struct stat st;
			fstat(fd, &st);
			const struct registration r = { .ino = ino, .fd = fd, .valid_until_ns = later_ns(), .notice = rnd(&state, 2),
							.stamp_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec };
			if ((error = table_register(&r)) != 0)
				fail("register", error, file);
			const struct registration lent = { .ino = ino | LENT, .fd = fd };
			if (!filled && ((error = table_register(&lent)) != 0 || table_fill(ino, 0, 1)))
				fail("lend", error, file);
			if (expected) {
				pthread_mutex_lock(&loop_lock);
				waiting_over(ino);
				pthread_mutex_unlock(&loop_lock);
			}
			break;
		case 2: { /* an open for writing, which ends again */
			const uint64_t fh = table_acquire(ino, later_ns(), true);
			if (!fh)
				break;
			if (table_acquire(ino, later_ns(), true) != fh)
				fail("acquire again", file, 0);
			table_answering(ino, 0, true);
			estate_answered();
			table_answering(ino, 0, true);
			estate_answered();
			table_released(ino, 0, true); /* one of two writers is left, which goes on */
			if (write_word(ino, fh, FILE_BYTES))
				fail("a write without room was answered", file, 0);
			if (!table_grant(ino, ROOM) || table_granted(ino, false) != ROOM)
				fail("grant", file, table_granted(ino, false));
			if (write_word(ino, fh, FILE_BYTES) != (MOST_LANES > 1))
				fail("write", file, 0);
			if (write_word(ino, fh, FILE_BYTES + 8) != (MOST_LANES > 1))
				fail("second write", file, 0);
			atomic_fetch_add(&written, MOST_LANES > 1);
			if (table_granted(ino, false) != ROOM - (MOST_LANES > 1 ? 2 * BLOCK : 0))
				fail("room that is left", file, table_granted(ino, false));
			if (write_word(ino, fh, LARGEST - 4))
				fail("a write that does not fit was answered", file, 0);
			if (table_granted(ino, true) || write_word(ino, fh, FILE_BYTES))
				fail("a write after its room was taken back was answered", file, 0);
			if (!table_grant(ino, ROOM))
				fail("grant again", file, 0);
			table_released(ino, 0, true);
			if (table_granted(ino, false) > 0 || table_grant(ino, ROOM))
				fail("room outlives its writers", file, table_granted(ino, false));
			write_word(ino, fh, FILE_BYTES); /* none is open for writing */
			break;
		}
		case 3: /* ends of opens that there are not: nobody writes, and nothing was inherited */
			if (table_released(ino, 0, true) || table_released(ino, RESENT, false))
				fail("an open of somebody else is counted down", file, table_opens(ino));
			if (rnd(&state, 4) == 0)
				table_retire(ino, false);
			if (rnd(&state, 4) == 0) /* that never comes */
				waiting_expect(ino, now_ns() + 1000000);
			break;
		default:
			waiting_give_up(now_ns() - 1000000);
			for (unsigned i = 0; i < 100; i++)
				waiting_interrupted(atomic_load(&unique_numbers) - 2 * i);
			while (take_drained(&gone))
				;
			take_noticed(noticed);
			take_touched(&touched);
			free(touched);
			take_busy(&busy);
			free(busy);
			for (size_t left = take_traced(traced, 64, &lost); left; left--)
				free(traced[left - 1].name);
			if (rnd(&state, 16) == 0)
				trace_set(rnd(&state, 4) == 0); /* meanwhile nothing waits */
		}
		close(fd);
		for (unsigned i = 0; i < 4; i++)
			play_with_names(&state);
		for (unsigned i = 0; i < 4; i++)
			play_with_missing(&state);
	}
	while (atomic_load(&reading)) {
		waiting_give_up(INT64_MAX);
		usleep(100);
	}
	return NULL;
}

static void *reader(void *argument)
{
	unsigned state = (unsigned)(uintptr_t)argument;
	char payload[PACKET];
	struct waiting w = { .payload = payload };
	while (!atomic_load(&stop)) {
		const unsigned file = rnd(&state, FILES);
		const uint64_t ino = ino_of(file);
		struct {
			struct fuse_in_header in;
			struct fuse_open_in arg;
		} open_request = { { .opcode = FUSE_OPEN, .nodeid = ino }, { .flags = O_RDONLY } };
		uint64_t fh = 1;
		const bool fast = rnd(&state, 2);
		if (fast) {
			request(&w, &open_request, sizeof open_request);
			if (w.to_python)
				continue;
			if (w.error || w.size != sizeof(struct open_reply))
				fail("open answered", w.error, (long long)w.size);
			fh = ((const struct open_reply *)payload)->fh;
			atomic_fetch_add(&opened, 1);
		}
		const unsigned offset = rnd(&state, FILE_BYTES / 8) * 8, size = rnd(&state, FILE_BYTES);
		struct {
			struct fuse_in_header in;
			struct fuse_read_in arg;
		} read_request = { { .opcode = FUSE_READ, .nodeid = ino }, { .fh = fh, .offset = offset, .size = size } };
		const unsigned long long before = atomic_load(&generations[file]);
		request(&w, &read_request, sizeof read_request);
		if (!w.to_python) {
			if (w.error)
				fail("read", w.error, file);
			const size_t whole = FILE_BYTES - offset < size ? FILE_BYTES - offset : size;
			if (w.size < whole)
				fail("short read", (long long)w.size, (long long)whole);
			unsigned long long first = 0, word;
			for (size_t i = 0; i + 8 <= whole; i += 8) {
				memcpy(&word, payload + i, 8);
				if (i == 0)
					first = word;
				if (word != first || word < before)
					fail("a read of two generations, or an old one", (long long)word, (long long)before);
			}
		}
		if (fast) {
			struct {
				struct fuse_in_header in;
				struct fuse_release_in arg;
			} release = { { .opcode = FUSE_RELEASE, .nodeid = ino }, { .fh = fh } };
			request(&w, &release, sizeof release);
			if (w.to_python || w.error)
				fail("release", w.to_python, w.error);
		}
	}
	atomic_fetch_sub(&reading, 1);
	return NULL;
}

/* The lanes stop, as they do for another daemon, and begin again. */
static void stop_and_start(void)
{
	while (lanes_stop())
		usleep(100);
	const unsigned long long before = lanes_sum().requests;
	usleep(5000);
	if (lanes_sum().requests != before)
		fail("a lane reads on", (long long)before, (long long)lanes_sum().requests);
	pthread_mutex_lock(&loop_lock);
	if ((errno = lanes_start(lanes_end, true)) != 0)
		fail("lanes, again", errno, 0);
	pthread_mutex_unlock(&loop_lock);
}

static void race(unsigned seconds)
{
	pthread_t threads[1 + READERS + LOOKERS];
	atomic_store(&racing, true);
	atomic_store(&reading, READERS);
	for (unsigned file = 0; file < FILES; file++) {
		const int fd = open_file(file, O_RDWR | O_CREAT);
		fill(fd, 0);
		close(fd);
	}
	for (unsigned i = 0; i <= READERS + LOOKERS; i++)
		pthread_create(&threads[i], NULL, i > READERS ? looker : i ? reader : python, (void *)(uintptr_t)(seed * 31 + i));
	for (unsigned i = 0; i < seconds; i++) {
		sleep(1);
		stop_and_start();
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i <= READERS + LOOKERS; i++)
		pthread_join(threads[i], NULL);
	size_t entries, bytes;
	answers_size(&entries, &bytes);
	if (!entries || bytes > ANSWERS_BUDGET)
		fail("not within the budget", (long long)entries, (long long)bytes);
	for (unsigned name = 0; name < NAMES; name++)
		answers_revoke_ino(ino_of_name(name));
	answers_size(&entries, &bytes);
	if (entries || bytes)
		fail("answers are left", (long long)entries, (long long)bytes);
	for (unsigned i = 0; i < 100000; i++) { /* more than there may be: it is forgotten, or stays small */
		char text[32];
		missing_revoke(2000, text, absent_name(i, text));
	}
	missing_revoke_all();
	missing_size(&entries, &bytes);
	if (entries || bytes)
		fail("directories are left", (long long)entries, (long long)bytes);
	for (unsigned file = 0; file < FILES; file++) {
		struct drained gone;
		table_retire(ino_of(file) | LENT, false);
		table_retire(ino_of(file), false);
		while (take_drained(&gone))
			;
		if (table_opens(ino_of(file)) != -1)
			fail("still registered", file, table_opens(ino_of(file)));
	}
}

/* ------------------------------------------------------------------ fuzz */

static void fuzz(unsigned count)
{
	static char packet[PACKET / 2];
	unsigned state = (unsigned)seed;
	const int fd = open_file(0, O_RDWR | O_CREAT);
	fill(fd, 1);
	const struct registration r = { .ino = 100, .fd = fd, .valid_until_ns = later_ns(), .notice = true };
	table_register(&r);
	answers_offer(&(struct offer){ .parent = 100, .ino = 100, .valid_until_ns = later_ns(), .name_size = 4 }, "name", false);
	missing_offer(100, later_ns(), later_ns(), true, NULL, 0);
	const uint64_t writing = table_acquire(100, later_ns(), true);
	table_grant(100, UINT32_MAX);
	static const uint32_t codes[] = { FUSE_OPEN, FUSE_READ, FUSE_WRITE, FUSE_RELEASE, FUSE_GETXATTR, FUSE_FORGET,
					  FUSE_BATCH_FORGET, FUSE_INTERRUPT, FUSE_SETATTR, FUSE_LOOKUP, FUSE_GETATTR, FUSE_CREATE,
					  FUSE_FLUSH, FUSE_SETXATTR, FUSE_READDIRPLUS, 0, 4711 };
	for (unsigned i = 0; i < count; i++) {
		struct fuse_in_header *in = (void *)packet;
		size_t size = rnd(&state, 3) ? rnd(&state, 200) : rnd(&state, sizeof packet);
		for (size_t k = 0; k < sizeof *in + 100 || k < size; k++)
			packet[k] = (char)rnd(&state, 256);
		in->opcode = codes[rnd(&state, sizeof codes / sizeof *codes)];
		in->unique = 1 + 2 * (uint64_t)i;
		if (rnd(&state, 2))
			in->nodeid = 100;
		uint64_t *words = (void *)(in + 1); /* fh, offset, size ... of READ and WRITE */
		if (in->opcode == FUSE_LOOKUP && rnd(&state, 2))
			size = sizeof *in + strlen(strcpy((char *)words, "name")) + rnd(&state, 3);
		else if (rnd(&state, 2))
			words[0] = rnd(&state, 2) ? writing : writing & ~MARK_WRITE;
		if (rnd(&state, 2))
			words[1] = rnd(&state, 2 * FILE_BYTES);
		if (rnd(&state, 2))
			((uint32_t *)words)[4] = rnd(&state, PACKET);
		if (size && send(kernel_end, packet, size, 0) != (ssize_t)size && errno != EAGAIN)
			fail("send", errno, (long long)size);
		atomic_fetch_add(&answered, 1);
	}
	/* All have been dealt with once one more is answered. */
	struct waiting w = { 0 };
	struct {
		struct fuse_in_header in;
		struct fuse_read_in arg;
	} last = { { .opcode = FUSE_READ, .nodeid = 100 }, { .fh = 1, .size = 0 } };
	char payload[PACKET];
	w.payload = payload;
	request(&w, &last, sizeof last);
	close(fd);
}

/* ------------------------------------------------------------------ the queue of prompt answers */

#define PROMPT 2000

static void *ask_promptly(void *unused)
{
	(void)unused;
	for (unsigned i = 0; i < PROMPT; i++) {
		const struct fuse_in_header in = { .len = sizeof in, .opcode = FUSE_GETATTR, .unique = i };
		if (!enqueue(&in, sizeof in))
			fail("no memory", i, 0);
	}
	return NULL;
}

/* Nothing is left behind where requests are not answered promptly any more. */
static void end_prompt(void)
{
	pthread_t asker;
	struct request *r;
	uint64_t one;
	prompt_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	prompt_want(true);
	ask_promptly(NULL);
	if (dequeue() || !prompt_waits())
		fail("not in the queue of its own", 0, 0);
	prompt_want(false);
	pthread_create(&asker, NULL, ask_promptly, NULL);
	for (unsigned i = 0; i < 100; i++) {
		prompt_want(true);
		sched_yield();
		prompt_want(false);
	}
	pthread_join(asker, NULL);
	if (prompt_waits())
		fail("left behind", 0, 0);
	for (unsigned i = 0; i < 2 * PROMPT; i++) {
		if (read(wakeup_fd, &one, sizeof one) != sizeof one)
			fail("nobody is told", i, errno);
		if (!(r = dequeue()) || ((const struct fuse_in_header *)r->data)->unique != i % PROMPT)
			fail("lost, or out of order", i, 0);
		free(r->data);
		free(r);
	}
	if (read(wakeup_fd, &one, sizeof one) != -1)
		fail("told too often", (long long)one, 0);
}

/* The opens that a successor would find are those that there are. */
static void check_estate(void)
{
	long there = 0, found = 0;
	for (unsigned file = 0; file < FILES; file++) {
		const long opens = table_opens(ino_of(file));
		there += opens > 0 ? opens : 0;
	}
	for (uint32_t i = 0; i < 1000; i++)
		found += (long)(estate_counts(estate_slot(i)) >> 32);
	if (found != there)
		fail("opens in the estate", found, there);
}

/* Each file that was opened since the last call is told once. */
static void check_touched(void)
{
	const int fd = open_file(0, O_RDWR);
	uint64_t *told;
	take_touched(&told);
	free(told);
	for (uint64_t ino = 5000; ino < 5100; ino++) {
		const struct registration r = { .ino = ino, .fd = fd, .valid_until_ns = later_ns() };
		const int error = table_register(&r);
		if (error || !table_acquire(ino, later_ns(), false))
			fail("register to be opened", error, (long long)ino);
		const size_t count = take_touched(&told);
		if (count != 1 || told[0] != ino)
			fail("told to be opened", (long long)count, (long long)ino);
		free(told);
	}
	if (take_touched(&told))
		fail("told twice to be opened", (long long)told[0], 0);
	free(told);
	close(fd);
}

/* Opens that a predecessor has left, of a file, or of one that is lost: each is counted down once. */
static void check_inherited(bool lost, int fd)
{
	const uint64_t ino = 6000 + lost;
	struct drained gone;
	struct entry *e;
	struct slot *s = estate_take(ino, 0, 1);
	estate_count(s, 0, 3, 1);
	estate_answered();
	const struct registration r = { .ino = ino, .fd = lost ? -1 : fd, .inherited = s, .retired = true };
	int error = table_register(&r);
	if (error || table_opens(ino) != 3)
		fail("inherited", error, table_opens(ino));
	if ((error = table_register(&r)) != EEXIST || estate_counts(s) >> 32 != 3)
		fail("inherited twice", error, (long long)estate_counts(s));
	for (unsigned writing = 0; writing < 2; writing++) {
		if (!(e = table_use(ino, true, writing, 0)) != lost)
			fail("a file that there is, or not", lost, writing);
		if (e)
			table_unuse(e, writing, 0);
	}
	if (table_intact(ino) != false || table_open(ino, 0, &(struct open_reply){ 0 }))
		fail("a retired file is opened", lost, 0);
	static const bool ends[] = { true, true, false, false, false }, counted[] = { true, false, true, true, false };
	for (unsigned i = 0; i < sizeof ends; i++)
		if (table_released(ino, RESENT | i, ends[i]) != counted[i])
			fail("counted down", i, table_opens(ino));
	if (table_opens(ino) != -1 || estate_counts(s) || !take_drained(&gone) || gone.ino != ino)
		fail("drained", table_opens(ino), (long long)estate_counts(s));
}

/* One that is registered here has no opens of a predecessor. */
static void check_resent(int fd)
{
	const struct registration r = { .ino = 6002, .fd = fd, .valid_until_ns = later_ns() }, none = { .ino = 6003, .fd = -1 };
	const int error = table_register(&r);
	if (error || table_register(&none) != EBADF)
		fail("register", error, 0);
	table_acquire(6002, later_ns(), false);
	table_answering(6002, RESENT | 2, false);
	estate_answered();
	if (table_released(6002, RESENT | 4, false) || table_released(6002, 4, true) || table_opens(6002) != 1)
		fail("an end of something else", table_opens(6002), 0);
	table_not_opened(6002, RESENT | 2, false);
	if (table_opens(6002) || table_retire(6002, true) || table_opens(6002) != -1)
		fail("an open that was not answered", table_opens(6002), 0);
}

int main(int argc, char **argv)
{
	int ends[2];
	pthread_t receiver, taker;
	if (argc != 5)
		return 2;
	signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &(struct rlimit){ LARGEST, LARGEST }) < 0)
		return 1;
	seed = strtoull(argv[2], NULL, 10);
	directory = argv[4];
	wakeup_fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	drained_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	interrupts_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	end_prompt();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) < 0)
		return 1;
	kernel_end = ends[0];
	lanes_end = ends[1];
	pthread_create(&receiver, NULL, receive, NULL);
	pthread_create(&taker, NULL, take_queue, NULL);
	estate_attach(calloc(1, ESTATE_OPENS_AT + ESTATE_OPERATIONS * 64 + ESTATE_SLOTS * 32));
	if ((errno = lanes_start(ends[1], true)) != 0)
		fail("lanes", errno, 0);
	const unsigned amount = (unsigned)strtoul(argv[3], NULL, 10);
	if (!strcmp(argv[1], "race"))
		race(amount);
	else
		fuzz(amount);
	atomic_store(&all_done, true);
	pthread_join(taker, NULL);
	shutdown(kernel_end, SHUT_RDWR);
	pthread_join(receiver, NULL);
	while (!atomic_load(&ended))
		usleep(1000);
	unsigned running, blocked, tries = 5000;
	do {
		usleep(1000);
		lanes_count(&running, &blocked);
	} while (blocked && --tries);
	if (blocked)
		fail("lanes pass for blocked", blocked, running);
	if (!strcmp(argv[1], "race"))
		check_estate();
	check_touched();
	const int fd = open_file(0, O_RDWR);
	check_inherited(false, fd);
	check_inherited(true, fd);
	check_resent(fd);
	close(fd);
	const struct lane_sums sums = lanes_sum();
	unsigned long long waited, waited_ns;
	unsigned waits;
	waiting_sums(&waits, &waited, &waited_ns);
	if (waits)
		fail("opens wait for ever", waits, 0);
	printf("answered %llu forwarded %llu opened %llu written %llu sent_out %llu read %llu lookups %llu getattrs %llu missed %llu asked %llu waited %llu\n", atomic_load(&answered),
	       atomic_load(&forwarded), atomic_load(&opened), atomic_load(&written), atomic_load(&sent_out), sums.reads, sums.lookups, sums.getattrs,
	       atomic_load(&missed), atomic_load(&asked), waited);
	return 0;
}
