/* Requests that Python answers in one step of the event loop, by a plain function: LOOKUP, GETATTR, SETATTR, CREATE, FLUSH,
 * RELEASE, READDIRPLUS.
 *
 * A handler of pyfuse3 costs two turns of the event loop and a task's wake-up before it runs. So once `set_prompt` was
 * called, these requests wait in a queue of their own, and `serve` calls Python's function for each that has come. That
 * answers, now or later, by `prompt_...`; or it declines, as the answer needs a wait: then the request goes to pyfuse3.
 */
#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 35
#include <Python.h>

#include "lane.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stdlib.h>

#define AT_ONCE 64 /* requests in one step; then others have their turn */
#define OF_READDIR 8 /* as many of others: it takes as long, and longer */

static PyObject *functions; /* in the order of `enum prompt_function`, NULL: none; guarded by the interpreter lock */

void prompt_set(PyObject *tuple)
{
	PyObject *before = functions;
	functions = tuple ? Py_NewRef(tuple) : NULL;
	prompt_want(tuple != NULL);
	Py_XDECREF(before);
}

/* Returns what the function does; NULL: an exception. */
static PyObject *call(const struct request *r)
{
	struct asked a;
	if (!asked_of(r, &a))
		return Py_NewRef(Py_False);
	PyObject *function = PyTuple_GET_ITEM(functions, a.function);
	const unsigned long long unique = a.unique, inode = a.inode, fh = a.fh;
	switch (a.function) {
	case PROMPT_LOOKUP:
		return PyObject_CallFunction(function, "KKy", unique, inode, a.name);
	case PROMPT_GETATTR:
		return PyObject_CallFunction(function, "KK", unique, inode);
	case PROMPT_CREATE:
		return PyObject_CallFunction(function, "KKyIIIIII", unique, inode, a.name, a.mode, a.flags, a.uid, a.gid, a.pid, a.umask);
	case PROMPT_SETATTR:
		return PyObject_CallFunction(function, "KKLLLLL", unique, inode, (long long)a.set_mode, (long long)a.set_uid,
					     (long long)a.set_gid, (long long)a.set_atime_ns, (long long)a.set_mtime_ns);
	case PROMPT_READDIR:
		return PyObject_CallFunction(function, "KKKI", unique, fh, (unsigned long long)a.offset, (unsigned)a.size);
	default:
		return PyObject_CallFunction(function, "KK", unique, fh);
	}
}

void prompt_serve(void)
{
	struct request *r;
	for (unsigned i = 0; i < AT_ONCE && (r = dequeue_prompt()); i++) {
		note_current(r);
		if (((const struct fuse_in_header *)r->data)->opcode == FUSE_READDIRPLUS)
			i += OF_READDIR - 1;
		PyObject *taken = functions ? call(r) : Py_NewRef(Py_False);
		if (!taken) { /* a mistake in luxfuse: its functions raise nothing */
			PyErr_WriteUnraisable(functions);
			send_reply(((const struct fuse_in_header *)r->data)->unique, EIO, NULL, 0);
		}
		if (taken == Py_False) {
			pass_on(r);
		} else {
			free(r->data);
			free(r);
		}
		Py_XDECREF(taken);
	}
	if (prompt_waits())
		tell(prompt_fd);
}

static void split(int64_t ns, uint64_t *seconds, uint32_t *nanoseconds)
{
	int64_t whole = ns / 1000000000, part = ns % 1000000000;
	if (part < 0) {
		whole--;
		part += 1000000000;
	}
	*seconds = (uint64_t)whole;
	*nanoseconds = (uint32_t)part;
}

static void fill(struct fuse_attr *out, const struct prompt_attributes *a)
{
	*out = (struct fuse_attr){
		.ino = a->ino, .size = a->size, .blocks = a->blocks, .mode = a->mode, .nlink = a->nlink, .uid = a->uid,
		.gid = a->gid, .rdev = a->rdev, .blksize = 4096,
	};
	split(a->atime_ns, &out->atime, &out->atimensec);
	split(a->mtime_ns, &out->mtime, &out->mtimensec);
	split(a->ctime_ns, &out->ctime, &out->ctimensec);
}

void prompt_fill_entry(struct fuse_entry_out *out, const struct prompt_attributes *a)
{
	*out = (struct fuse_entry_out){ .nodeid = a->ino };
	split(a->entry_ns, &out->entry_valid, &out->entry_valid_nsec);
	split(a->attr_ns, &out->attr_valid, &out->attr_valid_nsec);
	fill(&out->attr, a);
}

void prompt_entry(uint64_t unique, const struct prompt_attributes *a)
{
	struct fuse_entry_out out;
	prompt_fill_entry(&out, a);
	send_reply(unique, 0, &out, sizeof out);
}

void prompt_attr(uint64_t unique, const struct prompt_attributes *a)
{
	struct fuse_attr_out out = { 0 };
	split(a->attr_ns, &out.attr_valid, &out.attr_valid_nsec);
	fill(&out.attr, a);
	send_reply(unique, 0, &out, sizeof out);
}

void prompt_created(uint64_t unique, const struct prompt_attributes *a, uint64_t fh)
{
	struct {
		struct fuse_entry_out entry;
		struct open_reply open;
	} reply = { .open = { fh, fh & MARK_NOFLUSH ? OPEN_KEEP_CACHE | OPEN_NOFLUSH : OPEN_KEEP_CACHE, 0 } };
	prompt_fill_entry(&reply.entry, a);
	if (is_fast(fh)) {
		reply.open.open_flags = fh & MARK_WRITE ? 0 : OPEN_NOFLUSH;
		table_describe(fh & INODE_MASK, &reply.open);
		table_answering(fh & INODE_MASK, unique, fh & MARK_WRITE);
	}
	/* It fails if the connection has ended, or the opener is gone: no RELEASE will come, so the open is counted down. */
	if (send_reply(unique, 0, &reply, sizeof reply) < 0 && is_fast(fh))
		table_not_opened(fh & INODE_MASK, unique, fh & MARK_WRITE);
	estate_answered();
}
