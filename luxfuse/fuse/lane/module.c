/* Python's side of the lane: the module `luxfuse.fuse._passthrough`. Functions raise OSError and ValueError. */
#define PY_SSIZE_T_CLEAN
#define FUSE_USE_VERSION 35
#include <Python.h>

#include "lane.h"

#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

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

static PyObject *list_of(const uint64_t *numbers, size_t count)
{
	PyObject *list = PyList_New((Py_ssize_t)count);
	for (size_t i = 0; list && i < count; i++)
		PyList_SET_ITEM(list, (Py_ssize_t)i, PyLong_FromUnsignedLongLong(numbers[i]));
	return list;
}

static PyObject *py_take_interrupted(PyObject *self, PyObject *args)
{
	uint64_t count, found[INTERRUPTS];
	if (interrupts_fd >= 0 && read(interrupts_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return PyErr_SetFromErrno(PyExc_OSError);
	return list_of(found, take_interrupts(found));
}

static PyObject *py_current(PyObject *self, PyObject *args)
{
	return Py_BuildValue("(KI)", (unsigned long long)current_unique, (unsigned int)current_pid);
}

static PyObject *py_xattr_flags(PyObject *self, PyObject *args)
{
	return PyLong_FromUnsignedLong(current_xattr_flags);
}

static PyObject *py_caller(PyObject *self, PyObject *args)
{
	return Py_BuildValue("(IIL)", (unsigned int)current_pid, (unsigned int)current_uid, (long long)current_at_ns);
}

static PyObject *py_trace(PyObject *self, PyObject *args)
{
	int wanted;
	if (!PyArg_ParseTuple(args, "p", &wanted))
		return NULL;
	if (!trace_set(wanted))
		return PyErr_NoMemory();
	Py_RETURN_NONE;
}

static PyObject *py_time_queue(PyObject *self, PyObject *args)
{
	int wanted;
	if (!PyArg_ParseTuple(args, "p", &wanted))
		return NULL;
	atomic_store(&queue_timed, wanted);
	Py_RETURN_NONE;
}

#define TRACED_AT_ONCE 400u

static PyObject *py_take_traced(PyObject *self, PyObject *args)
{
	struct traced found[TRACED_AT_ONCE];
	unsigned long long lost;
	const size_t taken = take_traced(found, TRACED_AT_ONCE, &lost);
	PyObject *list = PyList_New((Py_ssize_t)taken);
	for (size_t i = 0; list && i < taken; i++) {
		const struct traced *t = &found[i];
		PyObject *each = Py_BuildValue("(LLKKKIIINy)", (long long)t->began_ns, (long long)t->took_ns, (unsigned long long)t->ino,
					       (unsigned long long)t->offset, (unsigned long long)t->bytes, (unsigned int)t->pid,
					       (unsigned int)t->uid, (unsigned int)t->opcode, PyBool_FromLong(t->passthrough), t->name);
		if (!each)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, (Py_ssize_t)i, each);
	}
	for (size_t i = 0; i < taken; i++)
		free(found[i].name);
	return list ? Py_BuildValue("(NK)", list, lost) : NULL;
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
	int device_fd, all = 0;
	if (!PyArg_ParseTuple(args, "i|p", &device_fd, &all))
		return NULL;
	errno = lanes_start(device_fd, all);
	if (errno)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *py_stop(PyObject *self, PyObject *args)
{
	const unsigned left = lanes_stop();
	waiting_give_up(INT64_MAX); /* what rests waits for nothing; once no lane is left, nothing begins to */
	return PyLong_FromUnsignedLong(left);
}

static PyObject *py_queued(PyObject *self, PyObject *args)
{
	return PyLong_FromUnsignedLong(queue_length());
}

static PyObject *py_register(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	int backing_id, fd, notice = 0;
	long long valid_until_ns, stamp_ns;
	if (!PyArg_ParseTuple(args, "KiiLL|p", &ino, &backing_id, &fd, &stamp_ns, &valid_until_ns, &notice))
		return NULL;
	const struct registration registration = { .ino = ino, .backing_id = backing_id, .fd = fd, .stamp_ns = stamp_ns,
						   .valid_until_ns = valid_until_ns, .notice = notice };
	const int error = table_register(&registration);
	if (error == EEXIST)
		return PyErr_Format(PyExc_ValueError, "inode %llu is registered already", ino);
	errno = error;
	if (error)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static Py_buffer estate; /* held for as long as the process lives */

static PyObject *py_estate(PyObject *self, PyObject *args)
{
	if (estate.buf || !PyArg_ParseTuple(args, "w*", &estate))
		return estate.buf ? PyErr_Format(PyExc_ValueError, "there is an estate already") : NULL;
	estate_attach(estate.buf);
	Py_RETURN_NONE;
}

static PyObject *py_inherit(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	unsigned int slot;
	int backing_id, fd, retired;
	long long stamp_ns;
	if (!PyArg_ParseTuple(args, "KIiiLp", &ino, &slot, &backing_id, &fd, &stamp_ns, &retired))
		return NULL;
	const struct registration registration = { .ino = ino, .backing_id = backing_id, .fd = fd, .stamp_ns = stamp_ns,
						   .inherited = estate_slot(slot), .retired = retired };
	errno = registration.inherited ? table_register(&registration) : EINVAL;
	if (errno)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *py_give_back(PyObject *self, PyObject *args)
{
	unsigned int slot;
	if (!PyArg_ParseTuple(args, "I", &slot))
		return NULL;
	estate_give(estate_slot(slot));
	Py_RETURN_NONE;
}

static PyObject *py_answering(PyObject *self, PyObject *args)
{
	unsigned long long unique;
	if (!PyArg_ParseTuple(args, "K", &unique))
		return NULL;
	answering_unique = unique;
	Py_RETURN_NONE;
}

static PyObject *py_lend(PyObject *self, PyObject *args)
{
	unsigned long long ino, filling_bytes = 0;
	int fd;
	if (!PyArg_ParseTuple(args, "Ki|K", &ino, &fd, &filling_bytes))
		return NULL;
	const struct registration registration = { .ino = ino | LENT, .fd = fd, .filling_bytes = filling_bytes };
	errno = table_register(&registration);
	if (errno)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *py_fill(PyObject *self, PyObject *args)
{
	unsigned long long ino, first, count;
	if (!PyArg_ParseTuple(args, "KKK", &ino, &first, &count))
		return NULL;
	return PyBool_FromLong(table_fill(ino, first, count));
}

static PyObject *py_take_back(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	table_retire(ino | LENT, false);
	Py_RETURN_NONE;
}

static PyObject *py_acquire(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	long long valid_until_ns;
	int writing = 0;
	if (!PyArg_ParseTuple(args, "KL|p", &ino, &valid_until_ns, &writing))
		return NULL;
	const uint64_t fh = table_acquire(ino, valid_until_ns, writing);
	if (!fh)
		Py_RETURN_NONE;
	return PyLong_FromUnsignedLongLong(fh);
}

static PyObject *py_released(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	int writing = 1;
	if (!PyArg_ParseTuple(args, "K|p", &ino, &writing))
		return NULL;
	return PyBool_FromLong(table_released(ino, current_unique, writing));
}

static PyObject *py_restamp(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	long long valid_until_ns, stamp_ns;
	if (!PyArg_ParseTuple(args, "KLL", &ino, &stamp_ns, &valid_until_ns))
		return NULL;
	table_restamp(ino, stamp_ns, valid_until_ns);
	Py_RETURN_NONE;
}

static PyObject *py_retire(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	int only_idle = 0;
	if (!PyArg_ParseTuple(args, "K|p", &ino, &only_idle))
		return NULL;
	return PyLong_FromLong(table_retire(ino, only_idle));
}

static PyObject *py_opens(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	return PyLong_FromLong(table_opens(ino));
}

static PyObject *py_is_intact(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	return PyBool_FromLong(table_intact(ino));
}

static PyObject *py_grant(PyObject *self, PyObject *args)
{
	unsigned long long ino, more_bytes;
	if (!PyArg_ParseTuple(args, "KK", &ino, &more_bytes))
		return NULL;
	return PyBool_FromLong(table_grant(ino, more_bytes));
}

static PyObject *py_granted(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	int take_back = 0;
	if (!PyArg_ParseTuple(args, "K|p", &ino, &take_back))
		return NULL;
	return PyLong_FromLongLong(table_granted(ino, take_back));
}

static PyObject *py_waiting(PyObject *self, PyObject *args)
{
	if (waiting_fd < 0 && (waiting_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(waiting_fd);
}

static PyObject *py_expect(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	long long until_ns;
	if (!PyArg_ParseTuple(args, "KL", &ino, &until_ns))
		return NULL;
	return PyBool_FromLong(waiting_expect(ino, until_ns));
}

static PyObject *py_arrived(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	waiting_over(ino);
	Py_RETURN_NONE;
}

static PyObject *py_give_up(PyObject *self, PyObject *args)
{
	uint64_t count;
	long long before_ns;
	if (!PyArg_ParseTuple(args, "L", &before_ns))
		return NULL;
	if (waiting_fd >= 0 && read(waiting_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyBool_FromLong(waiting_give_up(before_ns));
}

static PyObject *py_take_drained(PyObject *self, PyObject *args)
{
	uint64_t count;
	struct drained found;
	if (drained_fd >= 0 && read(drained_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return PyErr_SetFromErrno(PyExc_OSError);
	PyObject *list = PyList_New(0);
	while (list && take_drained(&found)) {
		PyObject *pair = Py_BuildValue("(Ki)", (unsigned long long)found.ino, found.backing_id);
		if (!pair || PyList_Append(list, pair) < 0)
			Py_CLEAR(list);
		Py_XDECREF(pair);
	}
	return list;
}

static PyObject *py_take_noticed(PyObject *self, PyObject *args)
{
	uint64_t found[NOTICES];
	return list_of(found, take_noticed(found));
}

static PyObject *py_take_touched(PyObject *self, PyObject *args)
{
	uint64_t *found;
	const size_t count = take_touched(&found);
	if (!found)
		return PyErr_NoMemory();
	PyObject *list = list_of(found, count);
	free(found);
	return list;
}

/* ------------------------------------------------------------------ answers */

static PyObject *py_take_busy(PyObject *self, PyObject *args)
{
	struct busy *found;
	const size_t count = take_busy(&found);
	PyObject *list = PyList_New((Py_ssize_t)count);
	for (size_t i = 0; list && i < count; i++) {
		PyObject *each = Py_BuildValue("(KKK)", (unsigned long long)found[i].ino, (unsigned long long)found[i].opens,
					       (unsigned long long)found[i].read_bytes);
		if (!each)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, (Py_ssize_t)i, each);
	}
	free(found);
	return list;
}

static PyObject *py_offer(PyObject *self, PyObject *args)
{
	struct offer said = { 0 };
	unsigned long long parent, ino, size, blocks;
	long long mtime_ns, ctime_ns, atime_ns, valid_until_ns;
	const char *name;
	Py_ssize_t length;
	int only_name, ahead;
	if (!PyArg_ParseTuple(args, "Ky#KIIIIKKLLLLpp", &parent, &name, &length, &ino, &said.mode, &said.uid, &said.gid, &said.rdev,
			      &size, &blocks, &mtime_ns, &ctime_ns, &atime_ns, &valid_until_ns, &only_name, &ahead))
		return NULL;
	if (length > UINT16_MAX)
		return PyErr_Format(PyExc_ValueError, "a name of %zd bytes", length);
	said.parent = parent, said.ino = ino, said.size = size, said.blocks = blocks;
	said.mtime_ns = mtime_ns, said.ctime_ns = ctime_ns, said.atime_ns = atime_ns, said.valid_until_ns = valid_until_ns;
	said.name_size = (uint16_t)length, said.only_name = only_name;
	return PyBool_FromLong(answers_offer(&said, name, ahead));
}

static PyObject *py_knows(PyObject *self, PyObject *args)
{
	unsigned long long parent;
	const char *name;
	Py_ssize_t length;
	if (!PyArg_ParseTuple(args, "Ky#", &parent, &name, &length))
		return NULL;
	return PyBool_FromLong(answers_have(parent, name, (size_t)length));
}

static PyObject *py_revoke(PyObject *self, PyObject *args)
{
	unsigned long long parent;
	const char *name;
	Py_ssize_t length;
	if (!PyArg_ParseTuple(args, "Ky#", &parent, &name, &length))
		return NULL;
	answers_revoke(parent, name, (size_t)length);
	missing_revoke(parent, name, (size_t)length);
	Py_RETURN_NONE;
}

static PyObject *py_revoke_inode(PyObject *self, PyObject *args)
{
	unsigned long long ino;
	if (!PyArg_ParseTuple(args, "K", &ino))
		return NULL;
	answers_revoke_ino(ino);
	Py_RETURN_NONE;
}

static PyObject *py_revoke_below(PyObject *self, PyObject *args)
{
	unsigned long long directory;
	if (!PyArg_ParseTuple(args, "K", &directory))
		return NULL;
	answers_revoke_below(directory);
	missing_revoke_below(directory);
	Py_RETURN_NONE;
}

/* Names of a sequence of bytes, to be freed; NULL with an exception. They are those of the objects, which are kept. */
static struct missing_name *names_in(PyObject *fast)
{
	const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast);
	struct missing_name *names = PyMem_Calloc((size_t)count + 1, sizeof *names);
	if (!names)
		PyErr_NoMemory();
	for (Py_ssize_t i = 0; names && i < count; i++) {
		Py_ssize_t size;
		char *name;
		if (PyBytes_AsStringAndSize(PySequence_Fast_GET_ITEM(fast, i), &name, &size) < 0) {
			PyMem_Free(names);
			return NULL;
		}
		names[i] = (struct missing_name){ name, (size_t)size };
	}
	return names;
}

static PyObject *py_offer_missing(PyObject *self, PyObject *args)
{
	unsigned long long directory;
	long long answer_until_ns, valid_until_ns;
	PyObject *given;
	if (!PyArg_ParseTuple(args, "KLLO", &directory, &answer_until_ns, &valid_until_ns, &given))
		return NULL;
	if (given == Py_None)
		return PyBool_FromLong(missing_offer(directory, answer_until_ns, valid_until_ns, false, NULL, 0));
	PyObject *fast = PySequence_Fast(given, "names: a sequence of bytes, or None");
	struct missing_name *names = fast ? names_in(fast) : NULL;
	if (!names) {
		Py_XDECREF(fast);
		return NULL;
	}
	const bool taken = missing_offer(directory, answer_until_ns, valid_until_ns, true, names, (size_t)PySequence_Fast_GET_SIZE(fast));
	PyMem_Free(names);
	Py_DECREF(fast);
	return PyBool_FromLong(taken);
}

static PyObject *py_revoke_missing(PyObject *self, PyObject *args)
{
	unsigned long long directory;
	if (!PyArg_ParseTuple(args, "K", &directory))
		return NULL;
	missing_revoke_below(directory);
	Py_RETURN_NONE;
}

static PyObject *py_revoke_all(PyObject *self, PyObject *args)
{
	answers_revoke_all();
	missing_revoke_all();
	Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ the rest */

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

static PyObject *py_set_prompt(PyObject *self, PyObject *args)
{
	PyObject *functions;
	if (!PyArg_ParseTuple(args, "O", &functions))
		return NULL;
	if (functions != Py_None && (!PyTuple_Check(functions) || PyTuple_GET_SIZE(functions) != PROMPT_FUNCTIONS)) {
		PyErr_SetString(PyExc_ValueError, "not as many functions as are wanted");
		return NULL;
	}
	if (prompt_fd < 0 && (prompt_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	prompt_set(functions == Py_None ? NULL : functions);
	return PyLong_FromLong(prompt_fd);
}

static PyObject *py_serve_prompt(PyObject *self, PyObject *args)
{
	uint64_t count;
	if (read(prompt_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return PyErr_SetFromErrno(PyExc_OSError);
	prompt_serve();
	Py_RETURN_NONE;
}

#define ATTRIBUTES "KKKIIIIILLLLL"

/* Takes attributes, and a handle if `fh` is given, out of the arguments of a reply. */
static bool attributes_from(PyObject *args, unsigned long long *unique, struct prompt_attributes *out, unsigned long long *fh)
{
	unsigned long long ino, size, blocks;
	long long mtime, ctime, atime, entry, attr;
	if (!PyArg_ParseTuple(args, fh ? "K" ATTRIBUTES "K" : "K" ATTRIBUTES, unique, &ino, &size, &blocks, &out->mode, &out->nlink,
			      &out->uid, &out->gid, &out->rdev, &mtime, &ctime, &atime, &entry, &attr, fh))
		return false;
	out->ino = ino, out->size = size, out->blocks = blocks;
	out->mtime_ns = mtime, out->ctime_ns = ctime, out->atime_ns = atime, out->entry_ns = entry, out->attr_ns = attr;
	return true;
}

static PyObject *py_reply_entry(PyObject *self, PyObject *args)
{
	unsigned long long unique;
	struct prompt_attributes attributes;
	if (!attributes_from(args, &unique, &attributes, NULL))
		return NULL;
	prompt_entry(unique, &attributes);
	Py_RETURN_NONE;
}

static PyObject *py_reply_attr(PyObject *self, PyObject *args)
{
	unsigned long long unique;
	struct prompt_attributes attributes;
	if (!attributes_from(args, &unique, &attributes, NULL))
		return NULL;
	prompt_attr(unique, &attributes);
	Py_RETURN_NONE;
}

static PyObject *py_reply_created(PyObject *self, PyObject *args)
{
	unsigned long long unique, fh;
	struct prompt_attributes attributes;
	if (!attributes_from(args, &unique, &attributes, &fh))
		return NULL;
	prompt_created(unique, &attributes, fh);
	Py_RETURN_NONE;
}

static PyObject *py_reply_done(PyObject *self, PyObject *args)
{
	unsigned long long unique;
	int error;
	if (!PyArg_ParseTuple(args, "Ki", &unique, &error))
		return NULL;
	send_reply(unique, error, NULL, 0); /* its failure means that nobody waits any more */
	Py_RETURN_NONE;
}

/* The answer that is packed so far: memory of Python's, to be given back; false with an exception. */
static bool packing_in(Py_buffer *view, Py_ssize_t used, struct packing *out)
{
	if (used < 0 || used > view->len) {
		PyErr_SetString(PyExc_ValueError, "more is used than there is");
		return false;
	}
	out->to = view->buf, out->size = (size_t)view->len, out->used = (size_t)used;
	return true;
}

static PyObject *py_pack(PyObject *self, PyObject *args)
{
	Py_buffer view;
	Py_ssize_t used, at;
	unsigned long long base;
	PyObject *list, *result = NULL;
	struct packing p = { 0 };
	if (!PyArg_ParseTuple(args, "w*nKO!nO(dddipLIIIO)", &view, &used, &base, &PyList_Type, &list, &at, &p.cookies, &p.now_s, &p.ttl_s,
			      &p.from_s, &p.silence, &p.directories, &p.mtime_ns, &p.uid, &p.gid, &p.umask, &p.aside))
		return NULL;
	p.base = base;
	if (at < 0 || (p.cookies != Py_None && !PyDict_Check(p.cookies)))
		PyErr_SetString(PyExc_ValueError, "no place in the list, or no dict");
	else if (packing_in(&view, used, &p) && entries_pack(&p, list, &at))
		result = Py_BuildValue("(nnN)", (Py_ssize_t)p.used, at, PyBool_FromLong(p.full));
	PyBuffer_Release(&view);
	return result;
}

static PyObject *py_pack_one(PyObject *self, PyObject *args)
{
	Py_buffer view;
	Py_ssize_t used, length;
	const char *name;
	unsigned long long cookie, ino, size, blocks;
	long long mtime, ctime, atime, entry, attr;
	struct prompt_attributes a;
	struct packing p = { 0 };
	PyObject *result = NULL;
	if (!PyArg_ParseTuple(args, "w*ny#K" ATTRIBUTES, &view, &used, &name, &length, &cookie, &ino, &size, &blocks, &a.mode, &a.nlink,
			      &a.uid, &a.gid, &a.rdev, &mtime, &ctime, &atime, &entry, &attr))
		return NULL;
	a.ino = ino, a.size = size, a.blocks = blocks;
	a.mtime_ns = mtime, a.ctime_ns = ctime, a.atime_ns = atime, a.entry_ns = entry, a.attr_ns = attr;
	if (packing_in(&view, used, &p))
		result = PyLong_FromSize_t(entries_pack_one(&p, name, (size_t)length, cookie, &a));
	PyBuffer_Release(&view);
	return result;
}

static PyObject *py_reply_packed(PyObject *self, PyObject *args)
{
	unsigned long long unique;
	Py_buffer view;
	Py_ssize_t used;
	struct packing p;
	if (!PyArg_ParseTuple(args, "Kw*n", &unique, &view, &used))
		return NULL;
	const bool fits = packing_in(&view, used, &p);
	if (fits)
		send_reply(unique, 0, p.to, p.used); /* its failure means that nobody waits any more */
	PyBuffer_Release(&view);
	if (!fits)
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *py_statistics(PyObject *self, PyObject *args)
{
	const unsigned long long served_opens = table_served_opens(); /* first: each is among the opens that are counted next */
	const struct lane_sums sums = lanes_sum();
	unsigned run, wait, opens_wait;
	size_t entries, bytes, directories, set_bytes;
	lanes_count(&run, &wait);
	answers_size(&entries, &bytes);
	unsigned long long waited, waited_ns;
	missing_size(&directories, &set_bytes);
	waiting_sums(&opens_wait, &waited, &waited_ns);
	return Py_BuildValue("{sIsKsKsKsKsKsKsKsKsKsKsIsIsnsnsnsn}", "opens_waiting", opens_wait, "waited_opens", waited, "waited_ns", waited_ns, "dataplane_opens", served_opens, "requests", sums.requests,
			     "opens", sums.opens, "reads", sums.reads, "read_bytes", sums.read_bytes, "writes", sums.writes,
			     "lookups", sums.lookups, "getattrs", sums.getattrs, "lanes", run, "lanes_waiting", wait,
			     "answers", (Py_ssize_t)entries, "answers_bytes", (Py_ssize_t)bytes, "known_directories",
			     (Py_ssize_t)directories, "known_directories_bytes", (Py_ssize_t)set_bytes);
}

static PyMethodDef methods[] = {
	{ "attach", py_attach, METH_NOARGS, "Make pyfuse3 take its requests from here. Returns the eventfd that tells of `take_drained` and `take_noticed`." },
	{ "interrupts", py_interrupts, METH_NOARGS, "Begin to note interrupts. Returns the eventfd that tells of `take_interrupted`." },
	{ "take_interrupted", py_take_interrupted, METH_NOARGS, "take_interrupted() -> [number of a request whose caller has a signal]." },
	{ "xattr_flags", py_xattr_flags, METH_NOARGS, "xattr_flags() -> flags of the SETXATTR whose handler begins, which pyfuse3 is not told." },
	{ "current", py_current, METH_NOARGS, "current() -> (number, thread of the caller) of the request whose handler begins; 0: not known." },
	{ "caller", py_caller, METH_NOARGS, "caller() -> (thread of the caller, its user, ns when its request was read, 0 unless `trace` or `time_queue` is on), as current." },
	{ "time_queue", py_time_queue, METH_VARARGS, "time_queue(wanted): note when requests are read, for `caller`, or end that." },
	{ "trace", py_trace, METH_VARARGS, "trace(wanted): note what is answered here from now on, or end that." },
	{ "take_traced", py_take_traced, METH_NOARGS, "take_traced() -> ([(began_ns, took_ns, ino, offset, bytes, thread, user, opcode, passthrough, name)], dropped): the next of what was noted, and how many found no room since the last call." },
	{ "push", py_push, METH_VARARGS, "push(request: bytes): hand one request to pyfuse3." },
	{ "start", py_start, METH_VARARGS, "start(device_fd: int, dataplane=False): begin to read requests from the device; READ, WRITE, LOOKUP and GETATTR are answered here with `dataplane`." },
	{ "stop", py_stop, METH_NOARGS, "stop() -> lanes that still read or answer: read no more requests. To be called until it is 0; start() ends it." },
	{ "queued", py_queued, METH_NOARGS, "queued() -> requests that were read, and that Python has not taken." },
	{ "register", py_register, METH_VARARGS, "register(ino, backing_id, fd, stamp_ns, valid_until_ns, notice=False): answer OPENs of ino here, and without a backing id (0) READs and WRITEs; fd is duplicated." },
	{ "estate", py_estate, METH_VARARGS, "estate(memory): count the opens in it, for a successor; before anything is registered." },
	{ "inherit", py_inherit, METH_VARARGS, "inherit(ino, slot, backing_id, fd, stamp_ns, retired): register an inode with the opens of a slot; fd -1: its file is lost." },
	{ "give_back", py_give_back, METH_VARARGS, "give_back(slot): a slot of a predecessor is free." },
	{ "answering", py_answering, METH_VARARGS, "answering(unique): the request whose open Python answers next." },
	{ "lend", py_lend, METH_VARARGS, "lend(ino, fd, filling_bytes=0): answer READs of the opens of ino that are not counted here from fd, which is duplicated; with filling_bytes, its size, only those of pages that `fill` says are there." },
	{ "fill", py_fill, METH_VARARGS, "fill(ino, first, count) -> whether the file is lent and being filled: these pages of it are there." },
	{ "take_back", py_take_back, METH_VARARGS, "take_back(ino): end that, if it was lent; what is read afterwards is not answered here." },
	{ "acquire", py_acquire, METH_VARARGS, "acquire(ino, valid_until_ns, writing=False) -> fh | None: count one more open of a registered inode." },
	{ "released", py_released, METH_VARARGS, "released(ino, writing=True): count down an open that was acquired for writing, or not; whether there was one." },
	{ "restamp", py_restamp, METH_VARARGS, "restamp(ino, stamp_ns, valid_until_ns): the backing file has a new mtime that is ours; stamp_ns -1: it has not." },
	{ "retire", py_retire, METH_VARARGS, "retire(ino, only_idle=False) -> backing id to close now; 0: none, or open (see take_drained); -1: left, open." },
	{ "is_intact", py_is_intact, METH_VARARGS, "is_intact(ino) -> whether nobody else wrote to the backing file." },
	{ "opens", py_opens, METH_VARARGS, "opens(ino) -> number of opens, -1 if not registered." },
	{ "grant", py_grant, METH_VARARGS, "grant(ino, more_bytes) -> whether WRITEs of ino are answered here; they may fill so much more on disk." },
	{ "granted", py_granted, METH_VARARGS, "granted(ino, take_back=False) -> bytes that WRITEs may still fill, those under way included; -1: not answered here." },
	{ "waiting", py_waiting, METH_NOARGS, "waiting() -> the eventfd that tells when an OPEN begins to wait for a file on its way, and none did." },
	{ "expect", py_expect, METH_VARARGS, "expect(ino, until_ns) -> bool: have OPENs of an inode that only read wait for `arrived`, until a time at most; False: there is no room." },
	{ "arrived", py_arrived, METH_VARARGS, "arrived(ino): its file is registered, or will not be: end that, and answer what waits, or leave it to pyfuse3." },
	{ "give_up", py_give_up, METH_VARARGS, "give_up(before_ns) -> whether an OPEN waits still: those that have waited since before then go to pyfuse3." },
	{ "take_drained", py_take_drained, METH_NOARGS, "take_drained() -> [(ino, backing_id)] of retired inodes closed since." },
	{ "take_noticed", py_take_noticed, METH_NOARGS, "take_noticed() -> [ino] registered with notice and opened since." },
	{ "take_touched", py_take_touched, METH_NOARGS, "take_touched() -> [ino] opened since the last call." },
	{ "take_busy", py_take_busy, METH_NOARGS, "take_busy() -> [(ino, opens, bytes read)] of what was answered here since the last call." },
	{ "offer", py_offer, METH_VARARGS, "offer(parent, name, ino, mode, uid, gid, rdev, size, blocks, mtime_ns, ctime_ns, atime_ns, valid_until_ns, only_name, ahead) -> bool: answer LOOKUPs of a name here, and GETATTRs of its inode unless `only_name`. False: there is no room, which for those `ahead` nobody makes." },
	{ "knows", py_knows, METH_VARARGS, "knows(parent, name) -> whether LOOKUPs of a name are answered here now." },
	{ "offer_missing", py_offer_missing, METH_VARARGS, "offer_missing(directory, answer_until_ns, valid_until_ns, names | None) -> bool: answer LOOKUPs of all other names in it here: they are missing, and the kernel may believe that until the second time. None: those that were given, and revoked. False: these are not known, or there are too many." },
	{ "revoke_missing", py_revoke_missing, METH_VARARGS, "revoke_missing(directory): end that." },
	{ "revoke", py_revoke, METH_VARARGS, "revoke(parent, name): end it for a name, whether it was there or missing; no answer is sent any more once this returns. No effect if it was not offered." },
	{ "revoke_inode", py_revoke_inode, METH_VARARGS, "revoke_inode(ino): end it for the name of an inode." },
	{ "revoke_below", py_revoke_below, METH_VARARGS, "revoke_below(directory): end it for all names of a directory." },
	{ "revoke_all", py_revoke_all, METH_NOARGS, "revoke_all(): end it for all names." },
	{ "set_fallocate", py_set_fallocate, METH_VARARGS, "set_fallocate(callable | None): called with (request, ino, fh, mode, offset, length); None: ENOSYS." },
	{ "reply_err", py_reply_err, METH_VARARGS, "reply_err(request, errno): answer a fallocate, exactly once." },
	{ "set_prompt", py_set_prompt, METH_VARARGS, "set_prompt((lookup, getattr, create, flush, release, setattr, readdir) | None) -> fd: have these functions called by `serve_prompt`, which the eventfd asks for." },
	{ "serve_prompt", py_serve_prompt, METH_NOARGS, "serve_prompt(): call the functions for the requests that have come; one that returns False leaves its request to pyfuse3." },
	{ "reply_entry", py_reply_entry, METH_VARARGS, "reply_entry(unique, ino, size, blocks, mode, nlink, uid, gid, rdev, mtime_ns, ctime_ns, atime_ns, entry_ns, attr_ns): answer a LOOKUP; ino 0: there is none." },
	{ "reply_attr", py_reply_attr, METH_VARARGS, "reply_attr(...): answer a GETATTR, as reply_entry." },
	{ "reply_created", py_reply_created, METH_VARARGS, "reply_created(..., fh): answer a CREATE, as reply_entry." },
	{ "reply_done", py_reply_done, METH_VARARGS, "reply_done(unique, errno): answer any of them, without a value." },
	{ "pack", py_pack, METH_VARARGS, "pack(answer, used, base, [(name, entry)], at, {inode: cookie} | None, common) -> (used, at, full): put entries into an answer to READDIRPLUS, from the at-th on, up to one for which `common` does not hold, or there is no room." },
	{ "pack_one", py_pack_one, METH_VARARGS, "pack_one(answer, used, name, cookie, ...) -> used: put in one, with attributes as of reply_entry; as before: there is no room." },
	{ "reply_packed", py_reply_packed, METH_VARARGS, "reply_packed(unique, answer, used): answer a READDIRPLUS." },
	{ "statistics", py_statistics, METH_NOARGS, "statistics() -> {name: number} of what was read and answered here." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_passthrough", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__passthrough(void)
{
	PyObject *m = PyModule_Create(&module);
	if (m && (!entries_begin() || PyModule_AddIntConstant(m, "FILL_BYTES", FILL_BYTES) < 0 ||
		  PyModule_AddObject(m, "MARK", PyLong_FromUnsignedLongLong(MARK)) < 0 ||
		  PyModule_AddObject(m, "MARK_FAST", PyLong_FromUnsignedLongLong(MARK_FAST)) < 0 ||
		  PyModule_AddObject(m, "MARK_NOFLUSH", PyLong_FromUnsignedLongLong(MARK_NOFLUSH)) < 0 ||
		  PyModule_AddObject(m, "MARK_CACHE_DIR", PyLong_FromUnsignedLongLong(MARK_CACHE_DIR)) < 0 ||
		  PyModule_AddObject(m, "MARK_KEEP_CACHE", PyLong_FromUnsignedLongLong(MARK_KEEP_CACHE)) < 0 ||
		  PyModule_AddObject(m, "MARK_WRITE", PyLong_FromUnsignedLongLong(MARK_WRITE)) < 0 ||
		  PyModule_AddIntConstant(m, "FLAG_KILL_SUIDGID", FLAG_KILL_SUIDGID) < 0))
		Py_CLEAR(m);
	return m;
}
