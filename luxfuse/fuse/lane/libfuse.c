/* The functions of libfuse that are found here first: the extension is loaded with RTLD_GLOBAL before pyfuse3.
 *
 *   fuse_session_fd, fuse_session_receive_buf   pyfuse3 waits on an eventfd of ours and takes requests from our queue
 *   fuse_reply_open, fuse_reply_create          add the backing id and the open flags that pyfuse3 has no field for
 *   fuse_session_new                            adds `fallocate` to the operations, which pyfuse3 has no handler for
 */
#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 35
#include <Python.h>

#include "lane.h"

#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *next_definition(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);
	if (!found)
		abort(); /* linked against libfuse3, so it is there */
	return found;
}

#pragma GCC visibility push(default) /* these, and no other names, are to be found */

int fuse_session_fd(struct fuse_session *se)
{
	return wakeup_fd;
}

int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
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
	note_current(r);
	free(r);
	return (int)buf->size;
}

static struct open_reply open_reply_of(const struct fuse_file_info *fi)
{
	struct open_reply reply = { fi->fh, 0, 0 };
	if (fi->fh & MARK_FAST) {
		reply.open_flags = fi->fh & MARK_WRITE ? 0 : OPEN_NOFLUSH;
		table_describe(fi->fh & INODE_MASK, &reply);
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
	if (is_fast(fh))
		table_answering(fh & INODE_MASK, answering_unique, fh & MARK_WRITE);
	int result = fuse_reply_buf(req, reply, size);
	if (result < 0 && is_fast(fh))
		table_not_opened(fh & INODE_MASK, answering_unique, fh & MARK_WRITE);
	estate_answered();
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

#pragma GCC visibility pop

/* ------------------------------------------------------------------ fallocate */

PyObject *on_fallocate; /* guarded by the interpreter lock */

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
__attribute__((visibility("default")))
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
