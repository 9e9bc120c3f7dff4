/* Requests that Python answers in one step of the event loop, by a plain function: LOOKUP, GETATTR, SETATTR, CREATE, FLUSH,
 * RELEASE.
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
#include <string.h>
#include <time.h>

#define AT_ONCE 64 /* requests in one step; then others have their turn */

static PyObject *functions; /* (lookup, getattr, create, flush, release, setattr), NULL: none; guarded by the interpreter lock */

void prompt_set(PyObject *tuple)
{
	PyObject *before = functions;
	functions = tuple ? Py_NewRef(tuple) : NULL;
	prompt_want(tuple != NULL);
	Py_XDECREF(before);
}

/* The name at the end of a request, NULL: there is none. */
static const char *name_at(const struct request *r, size_t start)
{
	const char *data = r->data;
	return r->size > start && !data[r->size - 1] ? data + start : NULL;
}

#define SET_PLAIN (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)
#define SET_SILENT (FATTR_FH | FATTR_LOCKOWNER) /* nothing is changed by these */

/* A time that is set, in nanoseconds; -1: it is not, or is before 1970, for which there is no call. */
static long long time_set(uint32_t valid, uint32_t set, uint32_t now, uint64_t seconds, uint32_t nanoseconds)
{
	struct timespec t = { (time_t)seconds, nanoseconds };
	if (!(valid & set))
		return -1;
	if (valid & now)
		clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Permissions, owner and times are set; -1 for what is not. What else there is in a request is for the handler. */
static PyObject *call_setattr(const struct fuse_in_header *in, const struct fuse_setattr_in *set)
{
	const uint32_t valid = set->valid;
	const bool late = set->atime > INT32_MAX || set->mtime > INT32_MAX; /* before 1970, or after 2038 */
	if (valid & ~(SET_PLAIN | SET_SILENT) || !(valid & SET_PLAIN) || late)
		return Py_NewRef(Py_False);
	return PyObject_CallFunction(PyTuple_GET_ITEM(functions, 5), "KKLLLLL", (unsigned long long)in->unique,
				     (unsigned long long)in->nodeid, valid & FATTR_MODE ? (long long)(set->mode & 07777) : -1ll,
				     valid & FATTR_UID ? (long long)set->uid : -1ll, valid & FATTR_GID ? (long long)set->gid : -1ll,
				     time_set(valid, FATTR_ATIME, FATTR_ATIME_NOW, set->atime, set->atimensec),
				     time_set(valid, FATTR_MTIME, FATTR_MTIME_NOW, set->mtime, set->mtimensec));
}

static PyObject *call(const struct request *r)
{
	const struct fuse_in_header *in = r->data;
	const void *arg = in + 1;
	const unsigned long long unique = in->unique, inode = in->nodeid;
	const size_t rest = r->size - sizeof *in;
	switch (in->opcode) {
	case FUSE_LOOKUP: {
		const char *name = name_at(r, sizeof *in);
		if (!name)
			break;
		return PyObject_CallFunction(PyTuple_GET_ITEM(functions, 0), "KKy", unique, inode, name);
	}
	case FUSE_GETATTR:
		return PyObject_CallFunction(PyTuple_GET_ITEM(functions, 1), "KK", unique, inode);
	case FUSE_SETATTR:
		if (rest < sizeof(struct fuse_setattr_in))
			break;
		return call_setattr(in, arg);
	case FUSE_CREATE: {
		const struct fuse_create_in *create = arg;
		const char *name = name_at(r, sizeof *in + sizeof *create);
		if (!name)
			break;
		return PyObject_CallFunction(PyTuple_GET_ITEM(functions, 2), "KKyIIIIII", unique, inode, name, create->mode,
					     create->flags, in->uid, in->gid, in->pid, create->umask);
	}
	case FUSE_FLUSH: {
		const struct fuse_flush_in *flush = arg;
		if (rest < sizeof *flush)
			break;
		return PyObject_CallFunction(PyTuple_GET_ITEM(functions, 3), "KK", unique, (unsigned long long)flush->fh);
	}
	case FUSE_RELEASE: {
		const struct fuse_release_in *release = arg;
		if (rest < sizeof *release)
			break;
		return PyObject_CallFunction(PyTuple_GET_ITEM(functions, 4), "KK", unique, (unsigned long long)release->fh);
	}
	default:
		break;
	}
	return Py_NewRef(Py_False);
}

void prompt_serve(void)
{
	struct request *r;
	for (unsigned i = 0; i < AT_ONCE && (r = dequeue_prompt()); i++) {
		note_current(r);
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

static struct fuse_entry_out entry_of(const struct prompt_attributes *a)
{
	struct fuse_entry_out out = { .nodeid = a->ino };
	split(a->entry_ns, &out.entry_valid, &out.entry_valid_nsec);
	split(a->attr_ns, &out.attr_valid, &out.attr_valid_nsec);
	fill(&out.attr, a);
	return out;
}

void prompt_entry(uint64_t unique, const struct prompt_attributes *a)
{
	const struct fuse_entry_out out = entry_of(a);
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
	} reply = { entry_of(a), { fh, fh & MARK_NOFLUSH ? OPEN_KEEP_CACHE | OPEN_NOFLUSH : OPEN_KEEP_CACHE, 0 } };
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
