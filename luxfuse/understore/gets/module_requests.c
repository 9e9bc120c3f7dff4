/* Requests of any kind, as Python says them: one, or several at once.
 *
 *   pool.requests(asked, credentials, tell)
 *
 * `asked` are tuples (method, key, query, headers, hash, brief, body): `query` is encoded and in the order of names, or None,
 * `headers` are lines "name: value" with names in lower case, `hash` is that of the body as it is signed, or None for its
 * SHA-256, which is made here; `brief`: it has the time-outs of a GET.
 *
 * `tell` is called with lists of answers, each with its number: (number, (outcome, status, code, seconds, head as it came,
 * body)), or the first four alone if the outcome is not that it is done; it is done whatever the answer says. It is called
 * once at the end as a rule, and before it for those that would else wait for slower ones (pool.c). Where it fails, the
 * requests that are under way are given up, and that is raised.
 */
#include "module.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define HASH_BYTES 32

struct asked {
	struct said said;
	Py_buffer data;
	char hash[2 * HASH_BYTES + 1];
	bool told;
};

struct batch_of_any {
	struct listener listener; /* first */
	struct asked asked[MOST_PARALLEL];
	struct get gets[MOST_PARALLEL];
	Py_ssize_t count;
	PyObject *tell;
	PyThreadState *thread; /* while the interpreter lock is not held */
};

static bool take_asked(PyObject *given, struct asked *a, struct get *g)
{
	PyObject *lines;
	const char *key, *query;
	int brief;
	if (!PyTuple_Check(given)) {
		PyErr_SetString(PyExc_TypeError, "a request is a tuple");
		return false;
	}
	if (!PyArg_ParseTuple(given, "sszO!zpy*:requests", &a->said.method, &key, &query, &PyTuple_Type, &lines, &a->said.hash,
			      &brief, &a->data))
		return false;
	*g = (struct get){ .kind = GET_ANY, .key = key, .query = query, .said = &a->said, .kept.fd = -1 };
	a->said.brief = brief;
	a->said.data = a->data.len ? a->data.buf : "";
	a->said.data_bytes = (size_t)a->data.len;
	return take_lines(lines, a->said.lines, HEADERS - 1);
}

/* Without the interpreter lock. */
static bool hash_body(struct asked *a)
{
	unsigned char hash[HASH_BYTES];
	if (EVP_Digest(a->said.data, a->said.data_bytes, hash, NULL, EVP_sha256(), NULL) != 1)
		return false;
	for (unsigned i = 0; i < HASH_BYTES; i++) {
		a->hash[2 * i] = "0123456789abcdef"[hash[i] >> 4];
		a->hash[2 * i + 1] = "0123456789abcdef"[hash[i] & 15];
	}
	a->said.hash = a->hash;
	return true;
}

static PyObject *answer_of(Py_ssize_t number, const struct get *g)
{
	if (g->outcome != GET_DONE)
		return Py_BuildValue("(n(iIId))", number, (int)g->outcome, g->status, g->code, g->seconds);
	return Py_BuildValue("(n(iIIdy#y#))", number, (int)g->outcome, g->status, g->code, g->seconds,
			     g->metadata ? g->metadata : "", (Py_ssize_t)g->metadata_bytes, g->body ? g->body : "",
			     (Py_ssize_t)g->size);
}

/* Tell of those that have ended, and were not told yet; false: there is an exception. */
static bool tell(struct batch_of_any *b)
{
	PyObject *all = PyList_New(0);
	bool done = all;
	for (Py_ssize_t i = 0; i < b->count && done; i++) {
		if (!b->gets[i].ended || b->asked[i].told)
			continue;
		PyObject *one = answer_of(i, &b->gets[i]);
		done = one && PyList_Append(all, one) == 0;
		Py_XDECREF(one);
		b->asked[i].told = true;
	}
	PyObject *nothing = done ? PyObject_CallOneArg(b->tell, all) : NULL;
	Py_XDECREF(nothing);
	Py_XDECREF(all);
	return nothing;
}

static void some_ended(struct listener *l)
{
	struct batch_of_any *b = (struct batch_of_any *)l;
	PyEval_RestoreThread(b->thread);
	const bool done = tell(b);
	b->thread = PyEval_SaveThread();
	if (!done)
		l->abandoned = 1; /* the exception is raised at the end */
}

/* Without the interpreter lock. */
static bool make_all(struct batch_of_any *b, struct pool *p, const struct credentials *c)
{
	for (Py_ssize_t i = 0; i < b->count; i++)
		if (!b->asked[i].said.hash && !hash_body(&b->asked[i]))
			return false;
	return pool_make(p, c, b->gets, (unsigned)b->count, &b->listener);
}

static bool make(struct batch_of_any *b, Pool *p, PyObject *given, const struct credentials *c)
{
	for (Py_ssize_t i = 0; i < b->count; i++)
		if (!take_asked(PySequence_Fast_GET_ITEM(given, i), &b->asked[i], &b->gets[i]))
			return false;
	b->thread = PyEval_SaveThread();
	const bool done = make_all(b, p->pool, c);
	PyEval_RestoreThread(b->thread);
	if (b->listener.abandoned)
		return false;
	if (!done)
		PyErr_NoMemory();
	return done && tell(b);
}

PyObject *py_requests(PyObject *self, PyObject *args)
{
	PyObject *given, *secrets, *tell;
	struct credentials c = { 0 };
	if (!PyArg_ParseTuple(args, "OOO:requests", &given, &secrets, &tell) || !take_credentials(secrets, &c))
		return NULL;
	PyObject *asked = PySequence_Fast(given, "requests are a sequence");
	if (!asked)
		return NULL;
	struct batch_of_any *b = calloc(1, sizeof *b);
	bool done = false;
	if (!b)
		PyErr_NoMemory();
	else if (PySequence_Fast_GET_SIZE(asked) > MOST_PARALLEL)
		PyErr_SetString(PyExc_ValueError, "too many requests at once");
	else {
		b->listener.some_ended = some_ended;
		b->count = PySequence_Fast_GET_SIZE(asked);
		b->tell = tell;
		done = make(b, (Pool *)self, asked, &c);
		for (Py_ssize_t i = 0; i < b->count; i++) {
			free(b->gets[i].metadata);
			free(b->gets[i].body);
			if (b->asked[i].data.obj)
				PyBuffer_Release(&b->asked[i].data);
		}
	}
	free(b);
	Py_DECREF(asked);
	if (!done)
		return NULL;
	Py_RETURN_NONE;
}
