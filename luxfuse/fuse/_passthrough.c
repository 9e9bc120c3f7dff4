/* The kernel side of passthrough that neither libfuse 3.14 nor pyfuse3 offers.
 *
 * Theory of operation
 * -------------------
 * Loaded with RTLD_GLOBAL before pyfuse3, this module's definitions of five libfuse functions are found first:
 *
 *   fuse_session_fd, fuse_session_receive_buf   pyfuse3 waits on an eventfd of ours and takes requests from our queue
 *   fuse_reply_open, fuse_reply_create          add the backing id and the open flags that pyfuse3 has no field for
 *   fuse_session_new                            adds `fallocate` to the operations, which pyfuse3 has no handler for
 *
 * A thread of ours, the *lane*, is the only reader of /dev/fuse. What needs no decision it answers itself, without the
 * interpreter lock: OPEN for reading of an inode that Python has registered with a backing id and whose freshness has
 * not run out, RELEASE of a passthrough handle that only reads, FORGET (inode numbers are persistent here, so lookup
 * counts mean nothing), and the questions for file capabilities, which come with writes, and for access control lists,
 * which `ls -l` asks of each file: there are none of either.
 * INTERRUPT goes to Python by a way of its own. Everything else goes to the queue, and so to pyfuse3. libfuse writes its replies straight to the device.
 *
 * The table below is the only place that counts passthrough opens. Python alone adds and retires entries. Opens are
 * counted by the lane and `acquire`; closes by the lane, or by `released` where the handle writes: its RELEASE goes to
 * Python, and until Python has dealt with it the inode keeps its backing. One mutex guards the table; it is never held
 * across a system call that can block.
 *
 * A handle (fh) with bit 63 set carries flags: see MARK_*. A passthrough handle is MARK | MARK_FAST | inode number, and
 * MARK_WRITE if it was opened for writing. Backing files are registered with descriptors that only read: the kernel
 * opens the file again, with the flags of the program, for each open.
 */
#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 35
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MARK (1ull << 63)
#define MARK_FAST (1ull << 62)
#define MARK_NOFLUSH (1ull << 61)
#define MARK_CACHE_DIR (1ull << 60)
#define MARK_KEEP_CACHE (1ull << 59) /* for directories: pyfuse3 has no FileInfo for them */
#define MARK_WRITE (1ull << 58)	     /* with MARK_FAST: asked about at FLUSH and RELEASE, and counted down by Python */
#define INODE_MASK ((1ull << 48) - 1)

/* Header files of distributions may be older than the running kernel: values from linux/fuse.h of 6.9 and later. */
#define OPEN_KEEP_CACHE (1u << 1)
#define OPEN_CACHE_DIR (1u << 3)
#define OPEN_NOFLUSH (1u << 5)
#define OPEN_PASSTHROUGH (1u << 7)

#define SETATTR_CTIME (1u << 10)
#define SETATTR_KILL_SUIDGID (1u << 11)
#define OPEN_KILL_SUIDGID (1u << 0)
#define FLAG_KILL_SUIDGID (1u << 30) /* ours, among the flags of an OPEN */

#define REQUEST_CAPACITY ((1u << 20) + (64u << 10)) /* max_write of 1 MiB, and headers */
#define QUEUE_BOUND 4096                            /* requests; then the lane waits, and the kernel holds the rest */
#define BUCKETS 16384u

struct open_reply {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

/* ------------------------------------------------------------------ requests on their way to pyfuse3 */

struct request {
	struct request *next;
	size_t size;
	void *data;
};

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_room = PTHREAD_COND_INITIALIZER;
static struct request *queue_head, *queue_tail;
static unsigned queue_length;
static int wakeup_fd = -1;
static int device_fd = -1;
static atomic_bool ended;

static void wake(void)
{
	uint64_t one = 1;
	while (write(wakeup_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

static bool enqueue(const void *data, size_t size)
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

static struct request *dequeue(void)
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

/* The kernel says that the caller of a request has a signal (FUSE_INTERRUPT); Python decides what that means. libfuse
 * tells its handlers nothing of it unless each asks, and pyfuse3 never does. A handler finds out which request it serves
 * by `current`: pyfuse3 takes a request and runs its handler up to the first wait without anything in between. */
#define INTERRUPTS 1024u
static pthread_mutex_t interrupt_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t interrupted[INTERRUPTS]; /* request numbers not yet taken by Python; more are dropped */
static unsigned interrupted_count;
static int interrupts_fd = -1; /* readable when `interrupted` has something */
static uint64_t current_unique; /* guarded by the interpreter lock, like the pid */
static uint32_t current_pid;

static void note_interrupt(const void *data, size_t size)
{
	const struct fuse_in_header *in = data;
	const struct fuse_interrupt_in *arg = (const void *)(in + 1);
	const uint64_t one = 1;
	if (size < sizeof *in + sizeof *arg || interrupts_fd < 0)
		return;
	pthread_mutex_lock(&interrupt_lock);
	if (interrupted_count < INTERRUPTS)
		interrupted[interrupted_count++] = arg->unique;
	pthread_mutex_unlock(&interrupt_lock);
	while (write(interrupts_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

/* pyfuse3 is about to run the handler of this request. What came through a pipe is a large write: nobody looks it up. */
static void note_current(const struct fuse_buf *buf)
{
	const struct fuse_in_header *in = buf->flags & FUSE_BUF_IS_FD || buf->size < sizeof *in ? NULL : buf->mem;
	current_unique = in ? in->unique : 0;
	current_pid = in ? in->pid : 0;
}

/* ------------------------------------------------------------------ registered inodes */

struct entry {
	struct entry *next;
	uint64_t ino;
	int64_t valid_until_ns; /* CLOCK_MONOTONIC; past it an OPEN goes to Python */
	int64_t stamp_ns; /* mtime of the backing file as we left it: another one means that somebody else wrote to it */
	uint32_t opens;
	int32_t backing_id;
	int fd; /* the backing file, to look at its mtime */
	bool retired; /* takes no new fast opens; reported once `opens` is 0 */
	bool touched; /* opened since `take_touched` last looked */
	bool notice;  /* tell Python of the next open (see take_noticed) */
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *table[BUCKETS];
static struct entry *drained; /* retired, without opens, not yet taken by Python */
static int drained_fd = -1; /* readable when `drained` or `noticed` has something */
#define NOTICES 1024u
static uint64_t noticed[NOTICES]; /* opened inodes that Python wanted to hear of; more are dropped */
static unsigned noticed_count;
static atomic_ullong requests, fast_opens;

static struct entry **slot_of(uint64_t ino)
{
	struct entry **slot = &table[(ino * 0x9E3779B97F4A7C15ull) >> 50];
	while (*slot && (*slot)->ino != ino)
		slot = &(*slot)->next;
	return slot;
}

static bool intact(const struct entry *e)
{
	struct stat st; /* fstat of an open local file does no I/O */
	return fstat(e->fd, &st) == 0 && st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec == e->stamp_ns;
}

static void free_entry(struct entry *e)
{
	if (e) {
		close(e->fd);
		free(e);
	}
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void tell_python(void)
{
	uint64_t one = 1;
	while (write(drained_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

static void entry_released(uint64_t ino)
{
	bool report = false;
	pthread_mutex_lock(&table_lock);
	struct entry **slot = slot_of(ino), *e = *slot;
	if (e && e->opens && --e->opens == 0 && e->retired) {
		*slot = e->next;
		e->next = drained;
		drained = e;
		report = true;
	}
	pthread_mutex_unlock(&table_lock);
	if (report)
		tell_python();
}

/* ------------------------------------------------------------------ the lane */

#define CAPABILITY "security.capability"
#define ACLS "system.posix_acl_"

static int send_reply(uint64_t unique, int error, const void *payload, size_t size)
{
	struct fuse_out_header out = { (uint32_t)(sizeof out + size), -error, unique };
	struct iovec iov[2] = { { &out, sizeof out }, { (void *)payload, size } };
	return writev(device_fd, iov, size ? 2 : 1) < 0 ? -errno : 0;
}

static bool answer_open(const struct fuse_in_header *in, const struct fuse_open_in *arg)
{
	struct open_reply reply = { MARK | MARK_FAST | in->nodeid, OPEN_NOFLUSH | OPEN_PASSTHROUGH, 0 };
	bool found = false, tell = false;
	if ((arg->flags & O_ACCMODE) != O_RDONLY || (arg->flags & O_TRUNC))
		return false;
	pthread_mutex_lock(&table_lock);
	struct entry *e = *slot_of(in->nodeid);
	if (e && !e->retired && now_ns() < e->valid_until_ns && (e->opens || intact(e))) {
		e->opens++;
		e->touched = true;
		reply.backing_id = e->backing_id;
		found = true;
		if (e->notice && noticed_count < NOTICES) {
			e->notice = false;
			noticed[noticed_count++] = e->ino;
			tell = true;
		}
	}
	pthread_mutex_unlock(&table_lock);
	if (!found)
		return false;
	if (tell)
		tell_python();
	if (send_reply(in->unique, 0, &reply, sizeof reply) < 0)
		entry_released(in->nodeid); /* the opener is gone, and no RELEASE will come */
	else
		atomic_fetch_add(&fast_opens, 1);
	return true;
}

/* What to answer for an attribute that no file can have, 0 for others. Programs take EOPNOTSUPP for the whole mount's word,
 * and need not ask about the next file; the kernel wants ENODATA where it asks for capabilities. */
static int never_there(const char *name, size_t size)
{
	if (size == sizeof CAPABILITY && !memcmp(name, CAPABILITY, size))
		return ENODATA;
	return size > sizeof ACLS && !memcmp(name, ACLS, sizeof ACLS - 1) ? EOPNOTSUPP : 0;
}

static bool answer(const void *data, size_t size)
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
		return size >= sizeof *in + sizeof(struct fuse_open_in) && answer_open(in, arg);
	case FUSE_RELEASE: {
		const struct fuse_release_in *release = arg;
		if (size < sizeof *in + sizeof *release || !(release->fh & MARK) || !(release->fh & MARK_FAST))
			return false;
		if (release->fh & MARK_WRITE)
			return false; /* Python has something to do at the end of a write */
		entry_released(release->fh & INODE_MASK);
		send_reply(in->unique, 0, NULL, 0);
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

static void *lane(void *unused)
{
	char *buffer = malloc(REQUEST_CAPACITY);
	while (buffer) {
		ssize_t n = read(device_fd, buffer, REQUEST_CAPACITY);
		if (n < 0) {
			if (errno == EINTR || errno == EAGAIN || errno == ENOENT)
				continue;
			break; /* ENODEV: unmounted or aborted */
		}
		if ((size_t)n < sizeof(struct fuse_in_header))
			continue;
		atomic_fetch_add(&requests, 1);
		if (answer(buffer, n))
			continue;
		say_kill(buffer, n);
		if (!enqueue(buffer, n))
			send_reply(((struct fuse_in_header *)buffer)->unique, ENOMEM, NULL, 0);
	}
	free(buffer);
	atomic_store(&ended, true);
	wake();
	return NULL;
}

/* ------------------------------------------------------------------ what pyfuse3 finds instead of libfuse's */

static void *next_definition(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);
	if (!found)
		abort(); /* linked against libfuse3, so it is there */
	return found;
}

int fuse_session_fd(struct fuse_session *se)
{
	if (wakeup_fd >= 0)
		return wakeup_fd;
	int (*next)(struct fuse_session *) = (int (*)(struct fuse_session *))next_definition("fuse_session_fd");
	return next(se);
}

int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	static int (*next)(struct fuse_session *, struct fuse_buf *);
	if (wakeup_fd < 0) {
		if (!next)
			next = (int (*)(struct fuse_session *, struct fuse_buf *))next_definition("fuse_session_receive_buf");
		const int result = next(se, buf);
		if (result > 0) {
			note_current(buf);
			if (current_unique && ((const struct fuse_in_header *)buf->mem)->opcode == FUSE_INTERRUPT)
				note_interrupt(buf->mem, buf->size);
		}
		return result;
	}
	struct request *r = dequeue();
	if (!r) {
		if (!atomic_load(&ended))
			return -EINTR;
		fuse_session_exit(se); /* the wake-up stays pending, so every waiting worker comes by and leaves */
		return 0;
	}
	uint64_t count;
	while (read(wakeup_fd, &count, sizeof count) < 0 && errno == EINTR)
		;
	free(buf->mem);
	buf->mem = r->data;
	buf->size = r->size;
	buf->flags = 0;
	free(r);
	note_current(buf);
	return (int)buf->size;
}

static int backing_of(uint64_t ino)
{
	pthread_mutex_lock(&table_lock);
	struct entry *e = *slot_of(ino);
	int id = e ? e->backing_id : 0;
	pthread_mutex_unlock(&table_lock);
	return id;
}

static struct open_reply open_reply_of(const struct fuse_file_info *fi)
{
	struct open_reply reply = { fi->fh, 0, 0 };
	if (fi->fh & MARK_FAST) {
		reply.open_flags = OPEN_PASSTHROUGH | (fi->fh & MARK_WRITE ? 0 : OPEN_NOFLUSH);
		reply.backing_id = backing_of(fi->fh & INODE_MASK);
	} else {
		reply.open_flags = (fi->keep_cache || fi->fh & MARK_KEEP_CACHE ? OPEN_KEEP_CACHE : 0) | (fi->direct_io ? FOPEN_DIRECT_IO : 0) |
				   (fi->fh & MARK_NOFLUSH ? OPEN_NOFLUSH : 0) |
				   (fi->fh & MARK_CACHE_DIR ? OPEN_CACHE_DIR : 0);
	}
	return reply;
}

/* A reply fails if the connection has ended, or the opener is gone: no RELEASE will come, so the open is counted down. */
static int send_open_reply(fuse_req_t req, uint64_t fh, const void *reply, size_t size)
{
	int result = fuse_reply_buf(req, reply, size);
	if (result < 0 && (fh & MARK_FAST))
		entry_released(fh & INODE_MASK);
	return result;
}

int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
	static int (*next)(fuse_req_t, const struct fuse_file_info *);
	if (!(fi->fh & MARK)) {
		if (!next)
			next = (int (*)(fuse_req_t, const struct fuse_file_info *))next_definition("fuse_reply_open");
		return next(req, fi);
	}
	const struct open_reply reply = open_reply_of(fi);
	return send_open_reply(req, fi->fh, &reply, sizeof reply);
}

static void split_timeout(double seconds, uint64_t *whole, uint32_t *nanoseconds)
{
	const double most = 1e15; /* more than any clock reaches */
	seconds = seconds > most ? most : seconds > 0 ? seconds : 0;
	*whole = (uint64_t)seconds;
	const double fraction = (seconds - (double)*whole) * 1e9;
	*nanoseconds = fraction >= 999999999 ? 999999999 : (uint32_t)fraction;
}

static struct fuse_entry_out entry_reply_of(const struct fuse_entry_param *e)
{
	struct fuse_entry_out out = { .nodeid = e->ino, .generation = e->generation };
	split_timeout(e->entry_timeout, &out.entry_valid, &out.entry_valid_nsec);
	split_timeout(e->attr_timeout, &out.attr_valid, &out.attr_valid_nsec);
	out.attr = (struct fuse_attr){
		.ino = e->attr.st_ino,
		.size = (uint64_t)e->attr.st_size,
		.blocks = (uint64_t)e->attr.st_blocks,
		.atime = (uint64_t)e->attr.st_atim.tv_sec,
		.mtime = (uint64_t)e->attr.st_mtim.tv_sec,
		.ctime = (uint64_t)e->attr.st_ctim.tv_sec,
		.atimensec = (uint32_t)e->attr.st_atim.tv_nsec,
		.mtimensec = (uint32_t)e->attr.st_mtim.tv_nsec,
		.ctimensec = (uint32_t)e->attr.st_ctim.tv_nsec,
		.mode = e->attr.st_mode,
		.nlink = (uint32_t)e->attr.st_nlink,
		.uid = e->attr.st_uid,
		.gid = e->attr.st_gid,
		.rdev = (uint32_t)e->attr.st_rdev,
		.blksize = (uint32_t)e->attr.st_blksize,
	};
	return out;
}

int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *e, const struct fuse_file_info *fi)
{
	static int (*next)(fuse_req_t, const struct fuse_entry_param *, const struct fuse_file_info *);
	if (!(fi->fh & MARK)) {
		if (!next)
			next = (int (*)(fuse_req_t, const struct fuse_entry_param *, const struct fuse_file_info *))
				next_definition("fuse_reply_create");
		return next(req, e, fi);
	}
	const struct {
		struct fuse_entry_out entry;
		struct open_reply open;
	} reply = { entry_reply_of(e), open_reply_of(fi) };
	return send_open_reply(req, fi->fh, &reply, sizeof reply);
}

/* ------------------------------------------------------------------ fallocate */

static PyObject *on_fallocate; /* guarded by the interpreter lock */

static void fallocate_handler(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
	PyGILState_STATE state = PyGILState_Ensure(); /* pyfuse3 holds it while libfuse calls handlers, but need not */
	if (!on_fallocate) {
		fuse_reply_err(req, ENOSYS);
	} else {
		PyObject *done = PyObject_CallFunction(on_fallocate, "KKKiLL", (unsigned long long)(uintptr_t)req,
						       (unsigned long long)ino, (unsigned long long)fi->fh, mode,
						       (long long)offset, (long long)length);
		if (!done) {
			PyErr_WriteUnraisable(on_fallocate);
			fuse_reply_err(req, EIO);
		}
		Py_XDECREF(done);
	}
	PyGILState_Release(state);
}

/* libfuse copies the table, so ours need not outlive the call. It may be of another size than the one known here. */
#undef fuse_session_new
struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op, size_t op_size, void *userdata)
{
	typedef struct fuse_session *(*function)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
	function next = (function)next_definition("fuse_session_new");
	const size_t needed = offsetof(struct fuse_lowlevel_ops, fallocate) + sizeof op->fallocate;
	const size_t size = op_size > needed ? op_size : needed;
	struct fuse_lowlevel_ops *extended = calloc(1, size);
	if (!extended)
		return NULL;
	memcpy(extended, op, op_size);
	if (!extended->fallocate)
		extended->fallocate = fallocate_handler;
	struct fuse_session *session = next(args, extended, size, userdata);
	free(extended);
	return session;
}

/* ------------------------------------------------------------------ Python's side */

static PyObject *py_attach(PyObject *self, PyObject *args)
{
	if (wakeup_fd < 0)
		wakeup_fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	if (drained_fd < 0)
		drained_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (wakeup_fd < 0 || drained_fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(drained_fd);
}

static PyObject *py_interrupts(PyObject *self, PyObject *args)
{
	if (interrupts_fd < 0)
		interrupts_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (interrupts_fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(interrupts_fd);
}

static PyObject *py_take_interrupted(PyObject *self, PyObject *args)
{
	uint64_t count, found[INTERRUPTS];
	if (interrupts_fd >= 0 && read(interrupts_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return PyErr_SetFromErrno(PyExc_OSError);
	pthread_mutex_lock(&interrupt_lock);
	const unsigned taken = interrupted_count;
	memcpy(found, interrupted, taken * sizeof *found);
	interrupted_count = 0;
	pthread_mutex_unlock(&interrupt_lock);
	PyObject *list = PyList_New(taken);
	for (unsigned i = 0; list && i < taken; i++)
		PyList_SET_ITEM(list, i, PyLong_FromUnsignedLongLong(found[i]));
	return list;
}

static PyObject *py_current(PyObject *self, PyObject *args)
{
	return Py_BuildValue("(KI)", (unsigned long long)current_unique, (unsigned int)current_pid);
}

static PyObject *py_push(PyObject *self, PyObject *args)
{
	Py_buffer view;
	if (!PyArg_ParseTuple(args, "y*", &view))
		return NULL;
	bool done = enqueue(view.buf, view.len);
	PyBuffer_Release(&view);
	if (!done)
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyObject *py_start(PyObject *self, PyObject *args)
{
	pthread_t thread;
	pthread_attr_t attributes;
	if (!PyArg_ParseTuple(args, "i", &device_fd))
		return NULL;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	int error = pthread_create(&thread, &attributes, lane, NULL);
	pthread_attr_destroy(&attributes);
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyObject *py_register(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	int backing_id, fd, notice = 0;
	long long valid_until_ns, stamp_ns;
	if (!PyArg_ParseTuple(args, "KiiLL|p", &ino, &backing_id, &fd, &stamp_ns, &valid_until_ns, &notice))
		return NULL;
	struct entry *e = calloc(1, sizeof *e);
	if (!e)
		return PyErr_NoMemory();
	e->ino = ino;
	e->stamp_ns = stamp_ns;
	e->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (e->fd < 0) {
		free(e);
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	e->backing_id = backing_id;
	e->valid_until_ns = valid_until_ns;
	e->notice = notice;
	pthread_mutex_lock(&table_lock);
	struct entry **slot = slot_of(ino);
	bool taken = *slot != NULL;
	if (!taken)
		*slot = e;
	pthread_mutex_unlock(&table_lock);
	if (taken) {
		free_entry(e);
		PyErr_Format(PyExc_ValueError, "inode %llu has a backing id already", ino);
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *py_acquire(PyObject *self, PyObject *args)
{
	unsigned long long ino, fh = 0;
	long long valid_until_ns;
	int writing = 0;
	if (!PyArg_ParseTuple(args, "KL|p", &ino, &valid_until_ns, &writing))
		return NULL;
	pthread_mutex_lock(&table_lock);
	struct entry *e = *slot_of(ino);
	if (e && (!e->retired || e->opens)) {
		e->opens++;
		e->touched = true;
		e->valid_until_ns = valid_until_ns;
		fh = MARK | MARK_FAST | (writing ? MARK_WRITE : 0) | ino;
	}
	pthread_mutex_unlock(&table_lock);
	if (!fh)
		Py_RETURN_NONE;
	return PyLong_FromUnsignedLongLong(fh);
}

static PyObject *py_released(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	entry_released(ino);
	Py_RETURN_NONE;
}

static PyObject *py_restamp(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	long long valid_until_ns, stamp_ns;
	if (!PyArg_ParseTuple(args, "KLL", &ino, &stamp_ns, &valid_until_ns))
		return NULL;
	pthread_mutex_lock(&table_lock);
	struct entry *e = *slot_of(ino);
	if (e) {
		if (stamp_ns >= 0)
			e->stamp_ns = stamp_ns;
		e->valid_until_ns = valid_until_ns;
	}
	pthread_mutex_unlock(&table_lock);
	Py_RETURN_NONE;
}

static PyObject *py_retire(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	int only_idle = 0;
	if (!PyArg_ParseTuple(args, "K|p", &ino, &only_idle))
		return NULL;
	int id = 0;
	struct entry *gone = NULL;
	pthread_mutex_lock(&table_lock);
	struct entry **slot = slot_of(ino), *e = *slot;
	if (e && e->opens && only_idle) {
		id = -1;
	} else if (e) {
		e->retired = true;
		if (!e->opens) {
			*slot = e->next;
			id = e->backing_id;
			gone = e;
		}
	}
	pthread_mutex_unlock(&table_lock);
	free_entry(gone);
	return PyLong_FromLong(id);
}

static PyObject *py_opens(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	pthread_mutex_lock(&table_lock);
	struct entry *e = *slot_of(ino);
	long opens = e ? (long)e->opens : -1;
	pthread_mutex_unlock(&table_lock);
	return PyLong_FromLong(opens);
}

static PyObject *py_is_intact(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	pthread_mutex_lock(&table_lock);
	struct entry *e = *slot_of(ino);
	bool result = e && intact(e);
	pthread_mutex_unlock(&table_lock);
	return PyBool_FromLong(result);
}

static PyObject *py_take_drained(PyObject *self, PyObject *args)
{
	uint64_t count;
	if (drained_fd >= 0 && read(drained_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return PyErr_SetFromErrno(PyExc_OSError);
	pthread_mutex_lock(&table_lock);
	struct entry *e = drained;
	drained = NULL;
	pthread_mutex_unlock(&table_lock);
	PyObject *list = PyList_New(0);
	while (e) {
		struct entry *next = e->next;
		if (list) {
			PyObject *pair = Py_BuildValue("(Ki)", (unsigned long long)e->ino, (int)e->backing_id);
			if (!pair || PyList_Append(list, pair) < 0)
				Py_CLEAR(list);
			Py_XDECREF(pair);
		}
		free_entry(e);
		e = next;
	}
	return list;
}

static PyObject *py_take_noticed(PyObject *self, PyObject *args)
{
	uint64_t found[NOTICES];
	pthread_mutex_lock(&table_lock);
	unsigned count = noticed_count;
	memcpy(found, noticed, count * sizeof *found);
	noticed_count = 0;
	pthread_mutex_unlock(&table_lock);
	PyObject *list = PyList_New(count);
	for (unsigned i = 0; list && i < count; i++)
		PyList_SET_ITEM(list, i, PyLong_FromUnsignedLongLong(found[i]));
	return list;
}

static PyObject *py_take_touched(PyObject *self, PyObject *args)
{
	size_t count = 0, room = 1024;
	uint64_t *found = malloc(room * sizeof *found);
	if (!found)
		return PyErr_NoMemory();
	pthread_mutex_lock(&table_lock);
	for (unsigned i = 0; i < BUCKETS; i++)
		for (struct entry *e = table[i]; e; e = e->next) {
			if (!e->touched)
				continue;
			if (count == room) {
				uint64_t *more = realloc(found, 2 * room * sizeof *found);
				if (!more)
					goto out; /* the rest stays marked for the next call */
				found = more;
				room *= 2;
			}
			e->touched = false;
			found[count++] = e->ino;
		}
out:
	pthread_mutex_unlock(&table_lock);
	PyObject *list = PyList_New((Py_ssize_t)count);
	for (size_t i = 0; list && i < count; i++)
		PyList_SET_ITEM(list, (Py_ssize_t)i, PyLong_FromUnsignedLongLong(found[i]));
	free(found);
	return list;
}

static PyObject *py_set_fallocate(PyObject *self, PyObject *args)
{
	PyObject *callable;
	if (!PyArg_ParseTuple(args, "O", &callable))
		return NULL;
	PyObject *before = on_fallocate;
	on_fallocate = callable == Py_None ? NULL : Py_NewRef(callable);
	Py_XDECREF(before);
	Py_RETURN_NONE;
}

static PyObject *py_reply_err(PyObject *self, PyObject *args)
{
	unsigned long long req;
	int error;
	if (!PyArg_ParseTuple(args, "Ki", &req, &error))
		return NULL;
	fuse_reply_err((fuse_req_t)(uintptr_t)req, error); /* its failure means that nobody waits any more */
	Py_RETURN_NONE;
}

static PyObject *py_statistics(PyObject *self, PyObject *args)
{
	return Py_BuildValue("(KK)", (unsigned long long)atomic_load(&requests),
			     (unsigned long long)atomic_load(&fast_opens));
}

static PyMethodDef methods[] = {
	{ "attach", py_attach, METH_NOARGS, "Make pyfuse3 take its requests from here. Returns the eventfd that tells of `take_drained` and `take_noticed`." },
	{ "interrupts", py_interrupts, METH_NOARGS, "Begin to note interrupts. Returns the eventfd that tells of `take_interrupted`." },
	{ "take_interrupted", py_take_interrupted, METH_NOARGS, "take_interrupted() -> [number of a request whose caller has a signal]." },
	{ "current", py_current, METH_NOARGS, "current() -> (number, thread of the caller) of the request whose handler begins; 0: not known." },
	{ "push", py_push, METH_VARARGS, "push(request: bytes): hand one request to pyfuse3." },
	{ "start", py_start, METH_VARARGS, "start(device_fd: int): begin to read requests from the device." },
	{ "register", py_register, METH_VARARGS, "register(ino, backing_id, fd, stamp_ns, valid_until_ns, notice=False): answer OPENs of ino here; fd is duplicated." },
	{ "acquire", py_acquire, METH_VARARGS, "acquire(ino, valid_until_ns, writing=False) -> fh | None: count one more passthrough open." },
	{ "released", py_released, METH_VARARGS, "released(ino): count down an open that was acquired for writing." },
	{ "restamp", py_restamp, METH_VARARGS, "restamp(ino, stamp_ns, valid_until_ns): the backing file has a new mtime that is ours; stamp_ns -1: it has not." },
	{ "retire", py_retire, METH_VARARGS, "retire(ino, only_idle=False) -> backing id to close now; 0: none, or open (see take_drained); -1: left, open." },
	{ "is_intact", py_is_intact, METH_VARARGS, "is_intact(ino) -> whether nobody else wrote to the backing file." },
	{ "opens", py_opens, METH_VARARGS, "opens(ino) -> number of passthrough opens, -1 if not registered." },
	{ "take_drained", py_take_drained, METH_NOARGS, "take_drained() -> [(ino, backing_id)] of retired inodes closed since." },
	{ "take_noticed", py_take_noticed, METH_NOARGS, "take_noticed() -> [ino] registered with notice and opened since." },
	{ "take_touched", py_take_touched, METH_NOARGS, "take_touched() -> [ino] opened since the last call." },
	{ "set_fallocate", py_set_fallocate, METH_VARARGS, "set_fallocate(callable | None): called with (request, ino, fh, mode, offset, length); None: ENOSYS." },
	{ "reply_err", py_reply_err, METH_VARARGS, "reply_err(request, errno): answer a fallocate, exactly once." },
	{ "statistics", py_statistics, METH_NOARGS, "statistics() -> (requests read, opens answered here)." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_passthrough", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__passthrough(void)
{
	PyObject *m = PyModule_Create(&module);
	if (m && (PyModule_AddObject(m, "MARK", PyLong_FromUnsignedLongLong(MARK)) < 0 ||
		  PyModule_AddObject(m, "MARK_FAST", PyLong_FromUnsignedLongLong(MARK_FAST)) < 0 ||
		  PyModule_AddObject(m, "MARK_NOFLUSH", PyLong_FromUnsignedLongLong(MARK_NOFLUSH)) < 0 ||
		  PyModule_AddObject(m, "MARK_CACHE_DIR", PyLong_FromUnsignedLongLong(MARK_CACHE_DIR)) < 0 ||
		  PyModule_AddObject(m, "MARK_KEEP_CACHE", PyLong_FromUnsignedLongLong(MARK_KEEP_CACHE)) < 0 ||
		  PyModule_AddObject(m, "MARK_WRITE", PyLong_FromUnsignedLongLong(MARK_WRITE)) < 0 ||
		  PyModule_AddIntConstant(m, "FLAG_KILL_SUIDGID", FLAG_KILL_SUIDGID) < 0))
		Py_CLEAR(m);
	return m;
}
