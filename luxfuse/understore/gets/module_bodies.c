/* The bodies of parts as Python has them: buffers that nobody writes to, with the checksums of their pages.
 *
 * The memory goes back to bodies.c with the last reference, that of a memoryview's slice among them.
 */
#include "module.h"

#include <stddef.h>
#include <structmember.h>

static PyTypeObject *body_type;

static void body_dealloc(PyObject *self)
{
	Body *b = (Body *)self;
	PyTypeObject *type = Py_TYPE(self);
	struct body *rest = b->body ? body_give_back(b->body) : NULL;
	if (rest) { /* which is rare: to give the interpreter lock away each time would cost more */
		Py_BEGIN_ALLOW_THREADS
		bodies_drop(rest);
		Py_END_ALLOW_THREADS
	}
	Py_XDECREF(b->checksums);
	type->tp_free(self);
	Py_DECREF(type);
}

static int body_get(PyObject *self, Py_buffer *view, int flags)
{
	Body *b = (Body *)self;
	return PyBuffer_FillInfo(view, self, b->body->bytes, b->size, 1, flags);
}

Body *body_new(Py_ssize_t size)
{
	Body *b = (Body *)body_type->tp_alloc(body_type, 0);
	if (b && !(b->body = body_take((size_t)size))) {
		Py_DECREF(b);
		PyErr_NoMemory();
		return NULL;
	}
	if (b)
		b->size = size;
	return b;
}

static PyMemberDef body_members[] = {
	{ "checksums", T_OBJECT_EX, offsetof(Body, checksums), READONLY, "xxh3-64 of each page from its start on" },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot body_slots[] = {
	{ Py_tp_dealloc, body_dealloc },
	{ Py_bf_getbuffer, body_get },
	{ Py_tp_members, body_members },
	{ 0, NULL },
};

static PyType_Spec body_spec = { "luxfuse.understore.gets._gets.Body", sizeof(Body), 0,
				 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, body_slots };

bool body_ready(void)
{
	body_type = (PyTypeObject *)PyType_FromSpec(&body_spec);
	return body_type != NULL;
}
