/* What the parts of the lane know of each other; each .c file has its own theory of operation.
 *
 *   lane.c     threads that read /dev/fuse and answer what needs no decision
 *   bytes.c    READ and WRITE of registered files
 *   answers.c  LOOKUP and GETATTR from what Python has said of names
 *   missing.c  LOOKUP of names that are missing
 *   table.c    the registered inodes: the only place that counts their opens
 *   estate.c   the opens, in memory that outlives the process
 *   trace.c    what lanes have answered, for a watcher
 *   waiting.c  OPENs that wait for a file on its way
 *   queue.c    requests on their way to pyfuse3, and interrupts
 *   asked.c    what requests ask for that Python is called for
 *   prompt.c   requests that Python answers in one step of the event loop
 *   entries.c  entries of directories, packed for READDIRPLUS
 *   libfuse.c  the functions of libfuse that are found here first
 *   module.c   Python's side: `luxfuse.fuse._passthrough`
 *
 * Order of the locks: a stripe of the table, then `report_lock` or that of the slots; those of answers.c and missing.c are taken alone. No lock is held across
 * a call that can block.
 */
#ifndef LUXFUSE_LANE_H
#define LUXFUSE_LANE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* A handle (fh) with bit 63 set carries flags. One with MARK_FAST is MARK | MARK_FAST | inode number, and MARK_WRITE if
 * it was opened for writing: it reads and writes the file that is registered for its inode. */
#define MARK (1ull << 63)
#define MARK_FAST (1ull << 62)
#define MARK_NOFLUSH (1ull << 61)
#define MARK_CACHE_DIR (1ull << 60)
#define MARK_KEEP_CACHE (1ull << 59) /* for directories: pyfuse3 has no FileInfo for them */
#define MARK_WRITE (1ull << 58)	     /* with MARK_FAST: asked about at FLUSH and RELEASE, and counted down by Python */
#define INODE_MASK ((1ull << 48) - 1)

#define RESENT (1ull << 63) /* of a request's number: it is sent again, as a predecessor has not answered it */

static inline bool is_fast(uint64_t fh)
{
	return fh & MARK && fh & MARK_FAST;
}

static inline int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Header files of distributions may be older than the running kernel: values from linux/fuse.h of 6.9 and later. */
#define OPEN_KEEP_CACHE (1u << 1)
#define OPEN_CACHE_DIR (1u << 3)
#define OPEN_NOFLUSH (1u << 5)
#define OPEN_PASSTHROUGH (1u << 7)

#define FLAG_KILL_SUIDGID (1u << 30) /* ours, among the flags of an OPEN */

#define MOST_BYTES (1u << 20)			       /* of one READ or WRITE: max_write */
#define REQUEST_CAPACITY (MOST_BYTES + (64u << 10)) /* and headers */

#ifndef RUN_BYTES
#define RUN_BYTES (8u << 20) /* written in sequence: these go to the disk. Fewer in a test. */
#endif

#ifndef LANE_PAUSE
#define LANE_PAUSE() ((void)0) /* where a test makes a thread lose the processor, so that races come about */
#endif

struct open_reply { /* struct fuse_open_out of 6.9 */
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

/* ------------------------------------------------------------------ queue.c */

extern int wakeup_fd;	  /* readable as long as there are requests; -1: not attached yet */
extern int interrupts_fd; /* readable when there are interrupts; -1: they are not noted */

struct request {
	struct request *next;
	size_t size;
	void *data;
	int64_t at_ns; /* when it was read, while `tracing` or `queue_timed` is set; else 0 */
};

extern atomic_bool queue_timed; /* somebody wants to know how long requests wait here */

bool enqueue(const void *data, size_t size); /* false: no memory. Waits while the queue is full. */
struct request *dequeue(void);		     /* NULL: there is none */
void wake(void);
void tell(int eventfd);

extern int prompt_fd; /* readable when there are requests for `prompt_serve` */
void prompt_want(bool wanted); /* false: what waits there goes to pyfuse3 */
struct request *dequeue_prompt(void);
bool prompt_waits(void);
void pass_on(struct request *r); /* to pyfuse3; never waits */
unsigned queue_length(void);	 /* of both queues */

#define INTERRUPTS 1024u
void note_interrupt(const void *data, size_t size);
unsigned take_interrupts(uint64_t *found); /* of INTERRUPTS numbers */

/* ------------------------------------------------------------------ waiting.c */

extern int waiting_fd; /* readable when an OPEN begins to wait, and none did; -1: nobody is told */
bool waiting_expect(uint64_t ino, int64_t until_ns); /* false: no room */
void waiting_over(uint64_t ino); /* its file has come, or will not: OPENs are answered, or go to Python; they do so after this */
bool waiting_keep(const void *request, size_t size); /* an OPEN; false: it is not to wait */
bool waiting_give_up(int64_t before_ns); /* what has waited since before then goes to Python; whether anything waits still */
void waiting_interrupted(uint64_t unique);
void waiting_sums(unsigned *now, unsigned long long *count, unsigned long long *ns); /* those that wait, and were answered here */

/* ------------------------------------------------------------------ table.c */

#define LENT (1ull << 62) /* with an inode number: the file from which copied opens are read */

struct entry;
extern int drained_fd; /* readable when there is something for `take_drained` or `take_noticed` */

struct slot;
struct registration {
	uint64_t ino;
	int backing_id; /* 0: READ and WRITE are answered here */
	int fd; /* -1, with `inherited`: it is lost */
	int64_t stamp_ns, valid_until_ns;
	bool notice;
	struct slot *inherited; /* the slot in which a predecessor has counted opens; the caller's, unless 0 is returned */
	bool retired;
	uint64_t filling_bytes; /* size of a lent file that is being filled: only its pages of `table_fill` are there; 0: all is */
};

int table_register(const struct registration *r);				   /* 0, or an errno; EEXIST */
uint64_t table_acquire(uint64_t ino, int64_t valid_until_ns, bool writing);	   /* the handle, 0: none */
bool table_open(uint64_t ino, uint64_t unique, struct open_reply *reply); /* counts an open that only reads, and describes it */
void table_answering(uint64_t ino, uint64_t unique, bool writing); /* an open that was acquired is about to be answered */
bool table_released(uint64_t ino, uint64_t unique, bool writing); /* `unique`: of the RELEASE. Whether there was such an open */
void table_not_opened(uint64_t ino, uint64_t unique, bool writing); /* the answer to an open has reached nobody */
void table_restamp(uint64_t ino, int64_t stamp_ns, int64_t valid_until_ns);
int table_retire(uint64_t ino, bool only_idle); /* as `retire` in module.c */
void table_describe(uint64_t ino, struct open_reply *reply); /* adds backing id and flags, if it is registered */
long table_opens(uint64_t ino);			/* -1: not registered */
bool table_intact(uint64_t ino);
#ifndef FILL_BYTES
#define FILL_BYTES (1u << 20) /* the page of a file that is being filled. Less in a test. */
#endif
bool table_fill(uint64_t ino, uint64_t first, uint64_t count); /* pages are there, of a lent file; false: it is not being filled */
unsigned long long table_served_opens(void); /* of inodes without a backing id, by lanes and by Python */

/* A registered file in use by a READ, WRITE or write-out, which must end with `table_unuse`. NULL: not to be answered here.
 * `room_bytes`: the most that a WRITE may take on disk, of the room that was granted; 0 for a READ. */
struct entry *table_use(uint64_t ino, bool fast, bool writing, uint64_t room_bytes);
struct entry *table_use_read(uint64_t ino, bool fast, uint64_t offset, uint64_t size); /* that, for a READ of this range */
int entry_fd(const struct entry *e, bool writing);
bool entry_is_cut(const struct entry *e, uint64_t offset, uint64_t size, uint64_t got); /* a file being filled ends too early */
bool table_unuse(struct entry *e, bool writing, uint64_t room_bytes); /* whether the file was not retired meanwhile */
uint64_t table_wrote(struct entry *e, uint64_t offset, uint64_t size); /* bytes up to its end to send to the disk; 0: none */
bool table_grant(uint64_t ino, uint64_t more_bytes);	/* false: its WRITEs are not answered here */
int64_t table_granted(uint64_t ino, bool take_back);	/* what WRITEs may still fill; -1: as above */

struct drained {
	uint64_t ino;
	int backing_id;
};
#define NOTICES 1024u
bool take_drained(struct drained *found); /* false: there are no more */
unsigned take_noticed(uint64_t *found);	  /* of NOTICES numbers */
size_t take_touched(uint64_t **found);	  /* to be freed; what finds no memory is taken the next time */

struct busy {
	uint64_t ino, opens, read_bytes;
};
void table_was_read(struct entry *e, uint64_t bytes); /* while it is in use */
size_t take_busy(struct busy **found);	/* what lanes have answered of each inode since the last call; as above */

/* ------------------------------------------------------------------ lane.c */

struct lane {
	_Alignas(64) atomic_ullong requests, opens, reads, read_bytes, writes, lookups, getattrs; /* read by others */
	char *request; /* of REQUEST_CAPACITY; both stay for the next thread */
	char *reply;   /* of MOST_BYTES, from the first READ on */
	struct {
		uint64_t ino, bytes; /* ino 0: a missing name */
		bool passthrough;
	} seen; /* of the last LOOKUP, READ, OPEN, for trace.c */
};
#ifndef MOST_LANES
#define MOST_LANES 16u /* fewer in a test, so that none may block */
#endif

extern atomic_bool ended;
extern bool dataplane; /* whether anything but OPEN and RELEASE is answered here */

int lanes_start(int device_fd, bool dataplane); /* 0, or an errno */
unsigned lanes_stop(void); /* how many still run: to be called until there are none. `lanes_start` begins them again. */
struct lane_sums {
	unsigned long long requests, opens, reads, read_bytes, writes, lookups, getattrs;
};
struct lane_sums lanes_sum(void); /* of the counters of all lanes */
void lanes_count(unsigned *run, unsigned *wait); /* lanes that run, and those of them that wait for a disk */
bool may_block(void);			    /* whether this lane may now wait for a disk; then `has_blocked` must follow */
void has_blocked(void);
int send_reply(uint64_t unique, int error, const void *payload, size_t size); /* 0, or a negative errno */
bool lane_answer_open(uint64_t ino, uint64_t unique, bool *passthrough, atomic_ullong *counter); /* one that only reads; false: not registered */
void count_up(atomic_ullong *counter, unsigned long long by);

/* ------------------------------------------------------------------ trace.c */

#ifndef TRACED
#define TRACED 65536u /* of 64 bytes */
#endif

struct traced {
	int64_t began_ns, took_ns; /* CLOCK_MONOTONIC */
	uint64_t ino, offset, bytes;
	uint32_t pid, uid, opcode;
	bool passthrough; /* of an OPEN: the kernel reads the file */
	char *name;	  /* of a LOOKUP of a missing name, in the directory `ino`; NULL: none, or no memory for it */
};

extern atomic_bool tracing;
bool trace_set(bool wanted); /* false: no memory; what was noted before is forgotten */
void trace_note(const struct lane *lane, const void *request, int64_t began_ns);
size_t take_traced(struct traced *found, size_t most, unsigned long long *lost); /* `lost` since the last call; names are to be freed */

/* ------------------------------------------------------------------ estate.c */

#define ESTATE_OPENS_AT 4096
#define ESTATE_OPERATIONS 64
#define ESTATE_SLOTS (1u << 17)

extern _Thread_local unsigned operation_number;

void estate_attach(void *memory); /* before anything is registered, if at all */
bool estate_here(void);
struct slot *estate_slot(uint32_t number);
struct slot *estate_take(uint64_t ino, int backing_id, uint64_t file_ino); /* NULL: there are no more */
void estate_give(struct slot *s);
void estate_count(struct slot *s, uint64_t unique, int opens, int writers); /* the stripe is locked */
void estate_answered(void); /* the request that was counted last by this thread */
uint64_t estate_counts(const struct slot *s);

/* ------------------------------------------------------------------ bytes.c */

bool answer_read(struct lane *lane, const void *request, size_t size);
bool answer_write(struct lane *lane, const void *request, size_t size);

/* ------------------------------------------------------------------ answers.c */

#ifndef ANSWERS_BUDGET
#define ANSWERS_BUDGET (64u << 20) /* bytes of all answers; about 400,000 of them. Fewer in a test. */
#endif

struct offer { /* of a name, which goes beside it */
	uint64_t parent, ino, size, blocks;
	int64_t mtime_ns, ctime_ns, atime_ns, valid_until_ns;
	uint32_t mode, uid, gid, rdev;
	uint16_t name_size;
	bool only_name; /* GETATTR goes to Python */
};

bool answer_lookup(struct lane *lane, const void *request, size_t size);
bool answer_getattr(struct lane *lane, const void *request, size_t size);

/* Of these, one at a time. Revoking returns when no lane will send what is revoked. */
bool answers_offer(const struct offer *said, const char *name, bool ahead); /* false: there is no room */
bool answers_have(uint64_t parent, const char *name, size_t size);
void answers_revoke(uint64_t parent, const char *name, size_t size);
void answers_revoke_ino(uint64_t ino);
void answers_revoke_below(uint64_t directory); /* all names of a directory */
void answers_revoke_all(void);
void answers_size(size_t *entries, size_t *bytes);

/* ------------------------------------------------------------------ missing.c */

struct missing_name {
	const char *name;
	size_t size;
};

bool answer_missing(struct lane *lane, const void *request, size_t size);

/* As those of answers.c. A directory is answered for until the first time; until the second the kernel may believe it.
 * Unless `named`, the names are those that are known. False: these are not known, or there is no room. */
bool missing_offer(uint64_t ino, int64_t answer_until_ns, int64_t valid_until_ns, bool named, const struct missing_name *names, size_t count);
void missing_revoke(uint64_t ino, const char *name, size_t size); /* the name may be there from now on */
void missing_revoke_below(uint64_t ino);			  /* so may any name */
void missing_revoke_all(void);
void missing_size(size_t *directories, size_t *bytes);

/* ------------------------------------------------------------------ asked.c */

extern uint64_t current_unique; /* guarded by the interpreter lock, like what follows */
extern uint64_t answering_unique; /* of the open that Python answers next */
extern uint32_t current_pid, current_uid, current_xattr_flags;
extern int64_t current_at_ns; /* as of struct request */
void note_current(const struct request *r); /* Python is about to be called for it */

enum prompt_function { PROMPT_LOOKUP, PROMPT_GETATTR, PROMPT_CREATE, PROMPT_FLUSH, PROMPT_RELEASE, PROMPT_SETATTR, PROMPT_READDIR, PROMPT_FUNCTIONS };

struct asked { /* of a request, which has the name */
	enum prompt_function function;
	uint64_t unique, inode, fh, offset;
	const char *name;
	uint32_t size;
	uint32_t mode, flags, uid, gid, pid, umask;
	int64_t set_mode, set_uid, set_gid, set_atime_ns, set_mtime_ns; /* -1: is left */
};

bool asked_of(const struct request *r, struct asked *out); /* false: it is not one that prompt.c has a function for */

/* ------------------------------------------------------------------ prompt.c */

struct prompt_attributes {
	uint64_t ino, size, blocks;
	uint32_t mode, nlink, uid, gid, rdev;
	int64_t mtime_ns, ctime_ns, atime_ns, entry_ns, attr_ns;
};

void prompt_serve(void); /* guarded by the interpreter lock */
void prompt_entry(uint64_t unique, const struct prompt_attributes *a);
void prompt_attr(uint64_t unique, const struct prompt_attributes *a);
void prompt_created(uint64_t unique, const struct prompt_attributes *a, uint64_t fh);
struct fuse_entry_out;
void prompt_fill_entry(struct fuse_entry_out *out, const struct prompt_attributes *a);
#ifdef Py_PYTHON_H
void prompt_set(PyObject *tuple); /* NULL: none */
#endif

/* ------------------------------------------------------------------ entries.c */

#ifdef Py_PYTHON_H
struct packing { /* an answer to READDIRPLUS as far as it has come, and what holds for entries in common: `vfs.shown.Common` */
	char *to;
	size_t size, used;
	bool full; /* there was no room for an entry */
	uint64_t base; /* of inode numbers */
	double now_s, ttl_s, from_s;
	int silence, directories;
	long long mtime_ns;
	unsigned uid, gid, umask;
	PyObject *aside, *cookies; /* inodes for which it does not hold; other numbers of positions than inodes; or None */
};

bool entries_begin(void); /* false: with an exception, like below */
bool entries_pack(struct packing *p, PyObject *list, Py_ssize_t *at);
size_t entries_pack_one(const struct packing *p, const char *name, size_t length, uint64_t cookie, const struct prompt_attributes *a);
#endif

/* ------------------------------------------------------------------ libfuse.c */

#ifdef Py_PYTHON_H
extern PyObject *on_fallocate; /* guarded by the interpreter lock */
#endif

#endif
