/* Python's side of the direct GETs: the module `luxfuse.understore.gets._gets`.
 *
 *   pool = Pool(url, path, host, region, condition, version, metadata, agent, bundle, connect_ms, timeout_ms, silence_s, most)
 *   pool.fetch(files, credentials, abandoned)
 *   pool.read(key, version, start, size, credentials)
 *   pool.head(key, credentials), pool.list(query, credentials)
 *   pool.requests(asked, credentials, tell), in module_requests.c
 *
 * `files` are tuples (key, version, size, cache file or None, whether that stays open), `credentials` None, (access, secret, token
 * or None) or (query or None, headers), `abandoned` one byte that becomes 1 when nobody waits any more. Headers are lines
 * "name: value". The answer has a tuple for each file:
 * (outcome, status, code, seconds, body, modified_s, metadata, checksums, stamp_ns, file number, descriptor, errno, opened).
 * `read` answers (outcome, status, code, seconds, body, size of the object, modified_s, metadata), where the body is a buffer that
 * has `checksums`, one for each page from its start on; its memory is used again when nobody refers to it (bodies.c).
 * `head` answers (outcome, status, code, seconds, size, ETag, modified_s, metadata), `list` the first four and a body; each
 * the first four alone if the outcome is not that it is done.
 * The bytes objects that bodies come in are made before the interpreter lock is given up, and filled without it; nobody else
 * knows them yet.
 */
#include "module.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_FILES 64

static void py_dealloc(PyObject *self)
{
	Pool *p = (Pool *)self;
	PyTypeObject *type = Py_TYPE(self);
	if (p->pool) {
		Py_BEGIN_ALLOW_THREADS
		pool_close(p->pool); /* may say farewell to servers */
		Py_END_ALLOW_THREADS
	}
	for (unsigned i = 0; i < TEXTS; i++)
		free(p->texts[i]);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *py_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
	static char *names[] = { "url", "path", "host", "region", "condition", "version", "metadata", "agent", "bundle",
				 "connect_ms", "timeout_ms", "silence_s", "most", NULL };
	const char *given[TEXTS];
	struct target t;
	if (!PyArg_ParseTupleAndKeywords(args, named, "ssssssssslllI:Pool", names, &given[0], &given[1], &given[2], &given[3],
					 &given[4], &given[5], &given[6], &given[7], &given[8], &t.connect_ms, &t.timeout_ms,
					 &t.silence_s, &t.most))
		return NULL;
	Pool *p = (Pool *)type->tp_alloc(type, 0);
	if (!p)
		return NULL;
	bool done = true;
	for (unsigned i = 0; i < TEXTS; i++)
		done = (p->texts[i] = strdup(given[i])) && done;
	t.url = p->texts[0];
	t.path = p->texts[1];
	t.host = p->texts[2];
	t.region = p->texts[3];
	t.condition = p->texts[4];
	t.version = p->texts[5];
	t.metadata = p->texts[6];
	t.agent = p->texts[7];
	t.bundle = p->texts[8];
	p->target = t;
	if (!done || !(p->pool = pool_open(&p->target))) {
		Py_DECREF(p);
		return PyErr_NoMemory();
	}
	return (PyObject *)p;
}

/* ------------------------------------------------------------------ what is asked for */

static bool take_file(PyObject *file, struct get *g, PyObject **body)
{
	Py_ssize_t size;
	int stay_open;
	if (!PyTuple_Check(file)) {
		PyErr_SetString(PyExc_TypeError, "a file is a tuple");
		return false;
	}
	if (!PyArg_ParseTuple(file, "ssnzp", &g->key, &g->version, &size, &g->path, &stay_open))
		return false;
	if (size < 1 || (size_t)size > MOST_BYTES) {
		PyErr_SetString(PyExc_ValueError, "no size that is fetched in this way");
		return false;
	}
	g->size = (size_t)size;
	g->stay_open = stay_open;
	*body = PyBytes_FromStringAndSize(NULL, size);
	if (!*body)
		return false;
	g->body = PyBytes_AS_STRING(*body);
	return true;
}

/* ------------------------------------------------------------------ what came of it */

static PyObject *metadata_of(const struct get *g)
{
	PyObject *found = PyDict_New();
	const char *at = g->metadata, *end = g->metadata ? at + g->metadata_bytes : NULL;
	while (found && at < end) {
		const char *value = at + strlen(at) + 1;
		PyObject *text = PyUnicode_FromString(value);
		if (!text || PyDict_SetItemString(found, at, text) < 0)
			Py_CLEAR(found);
		Py_XDECREF(text);
		at = value + strlen(value) + 1;
	}
	return found;
}

static PyObject *checksums_of(const struct kept *k)
{
	PyObject *sums = PyTuple_New(k->pages);
	for (unsigned i = 0; sums && i < k->pages; i++) {
		PyObject *sum = PyLong_FromUnsignedLongLong(k->sums[i]);
		if (!sum)
			Py_CLEAR(sums);
		else
			PyTuple_SET_ITEM(sums, i, sum);
	}
	return sums;
}

static PyObject *result_of(struct get *g, PyObject *body)
{
	if (g->outcome != GET_DONE)
		return Py_BuildValue("(iIId)", (int)g->outcome, g->status, g->code, g->seconds);
	PyObject *metadata = metadata_of(g), *sums = checksums_of(&g->kept);
	if (!metadata || !sums) {
		Py_XDECREF(metadata);
		Py_XDECREF(sums);
		return NULL;
	}
	const struct kept *k = &g->kept;
	return Py_BuildValue("(iIIdOLNNLKiiO)", (int)g->outcome, g->status, g->code, g->seconds, body, (long long)g->modified_s,
			     metadata, sums, (long long)k->stamp_ns, (unsigned long long)k->number, k->fd, k->error,
			     k->opened ? Py_True : Py_False);
}

static PyObject *results_of(struct get *gets, PyObject **bodies, unsigned count)
{
	PyObject *all = PyList_New(count);
	for (unsigned i = 0; all && i < count; i++) {
		PyObject *one = result_of(&gets[i], bodies[i]);
		if (!one)
			Py_CLEAR(all);
		else
			PyList_SET_ITEM(all, i, one);
	}
	for (unsigned i = 0; !all && i < count; i++)
		if (gets[i].kept.fd >= 0)
			close(gets[i].kept.fd);
	return all;
}

/* ------------------------------------------------------------------ methods */

static PyObject *fetch(Pool *p, PyObject *files, const struct credentials *c, const uint8_t *abandoned)
{
	struct get gets[MOST_FILES] = { 0 };
	PyObject *bodies[MOST_FILES] = { 0 }, *results = NULL;
	const Py_ssize_t count = PySequence_Fast_GET_SIZE(files);
	bool done = true;
	if (count > MOST_FILES) {
		PyErr_SetString(PyExc_ValueError, "too many files at once");
		return NULL;
	}
	for (Py_ssize_t i = 0; i < count; i++)
		gets[i].kept.fd = -1; /* also of those that are not reached: none is to be closed */
	for (Py_ssize_t i = 0; i < count && done; i++)
		done = take_file(PySequence_Fast_GET_ITEM(files, i), &gets[i], &bodies[i]);
	if (done) {
		Py_BEGIN_ALLOW_THREADS
		done = pool_get(p->pool, c, gets, (unsigned)count, abandoned);
		Py_END_ALLOW_THREADS
		if (done)
			results = results_of(gets, bodies, (unsigned)count);
		else
			PyErr_NoMemory();
	}
	for (Py_ssize_t i = 0; i < count; i++) {
		Py_XDECREF(bodies[i]);
		free(gets[i].metadata);
		if (!done && gets[i].kept.fd >= 0)
			close(gets[i].kept.fd);
	}
	return results;
}

static PyObject *py_fetch(PyObject *self, PyObject *args)
{
	PyObject *given, *secrets;
	Py_buffer abandoned;
	struct credentials c = { 0 };
	if (!PyArg_ParseTuple(args, "OOy*:fetch", &given, &secrets, &abandoned))
		return NULL;
	PyObject *results = NULL, *files = NULL;
	if (!take_credentials(secrets, &c))
		goto end;
	if (abandoned.len != 1) {
		PyErr_SetString(PyExc_ValueError, "one byte says whether the batch is abandoned");
		goto end;
	}
	files = PySequence_Fast(given, "files are a sequence");
	if (files)
		results = fetch((Pool *)self, files, &c, abandoned.buf);
end:
	Py_XDECREF(files);
	PyBuffer_Release(&abandoned);
	return results;
}

/* Make one request that is never given up; false: there is an exception. */
static bool ask(PyObject *self, PyObject *secrets, struct get *g)
{
	static const uint8_t wanted = 0;
	struct credentials c = { 0 };
	bool done;
	if (!take_credentials(secrets, &c))
		return false;
	Py_BEGIN_ALLOW_THREADS
	done = pool_get(((Pool *)self)->pool, &c, g, 1, &wanted);
	Py_END_ALLOW_THREADS
	if (!done)
		PyErr_NoMemory();
	return done;
}

static PyObject *py_read(PyObject *self, PyObject *args)
{
	struct get g = { .kind = GET_PART, .kept.fd = -1 };
	PyObject *secrets, *result = NULL;
	unsigned long long start;
	Py_ssize_t size;
	if (!PyArg_ParseTuple(args, "ssKnO:read", &g.key, &g.version, &start, &size, &secrets))
		return NULL;
	if (size < 1 || (size_t)size > MOST_PART_BYTES || start > INT64_MAX) {
		PyErr_SetString(PyExc_ValueError, "no part that is fetched in this way");
		return NULL;
	}
	Body *b = body_new(size);
	if (!b)
		return NULL;
	g.start = start;
	g.size = (size_t)size;
	g.body = b->body->bytes;
	if (ask(self, secrets, &g)) {
		PyObject *metadata = g.outcome == GET_DONE ? metadata_of(&g) : NULL;
		if (g.outcome != GET_DONE)
			result = result_of(&g, NULL);
		else if (metadata && (b->checksums = checksums_of(&g.kept)))
			result = Py_BuildValue("(iIIdOKLN)", (int)g.outcome, g.status, g.code, g.seconds, (PyObject *)b,
					       (unsigned long long)g.total, (long long)g.modified_s, metadata);
		else
			Py_XDECREF(metadata);
	}
	Py_DECREF(b);
	free(g.metadata);
	return result;
}

static PyObject *py_head(PyObject *self, PyObject *args)
{
	struct get g = { .kind = GET_HEAD, .kept.fd = -1 };
	PyObject *secrets, *result = NULL;
	if (!PyArg_ParseTuple(args, "sO:head", &g.key, &secrets))
		return NULL;
	if (ask(self, secrets, &g)) {
		PyObject *metadata = g.outcome == GET_DONE ? metadata_of(&g) : NULL;
		if (g.outcome != GET_DONE)
			result = result_of(&g, NULL);
		else if (metadata)
			result = Py_BuildValue("(iIIdnsLN)", (int)g.outcome, g.status, g.code, g.seconds, (Py_ssize_t)g.size, g.etag,
					       (long long)g.modified_s, metadata);
	}
	free(g.metadata);
	return result;
}

static PyObject *py_list(PyObject *self, PyObject *args)
{
	struct get g = { .kind = GET_LIST, .key = "", .kept.fd = -1 };
	PyObject *secrets, *result = NULL;
	if (!PyArg_ParseTuple(args, "sO:list", &g.query, &secrets))
		return NULL;
	if (ask(self, secrets, &g)) {
		if (g.outcome != GET_DONE)
			result = result_of(&g, NULL);
		else
			result = Py_BuildValue("(iIIdy#)", (int)g.outcome, g.status, g.code, g.seconds, g.body, (Py_ssize_t)g.size);
	}
	free(g.body);
	return result;
}

static PyMethodDef pool_methods[] = {
	{ "fetch", py_fetch, METH_VARARGS, "fetch(files, credentials, abandoned) -> list of results" },
	{ "read", py_read, METH_VARARGS, "read(key, version, start, size, credentials) -> part of an object" },
	{ "head", py_head, METH_VARARGS, "head(key, credentials) -> description of an object" },
	{ "list", py_list, METH_VARARGS, "list(query, credentials) -> listing" },
	{ "requests", py_requests, METH_VARARGS, "requests(what is asked, credentials, tell); tells of their answers" },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot pool_slots[] = {
	{ Py_tp_new, py_new },
	{ Py_tp_dealloc, py_dealloc },
	{ Py_tp_methods, pool_methods },
	{ 0, NULL },
};

static PyType_Spec pool_spec = { "luxfuse.understore.gets._gets.Pool", sizeof(Pool), 0, Py_TPFLAGS_DEFAULT, pool_slots };

static PyObject *py_release(PyObject *self, PyObject *none)
{
	Py_BEGIN_ALLOW_THREADS
	bodies_release();
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *py_allow(PyObject *self, PyObject *args)
{
	unsigned descriptors;
	if (!PyArg_ParseTuple(args, "I:allow", &descriptors))
		return NULL;
	sets_allow(descriptors);
	Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
	{ "allow", py_allow, METH_VARARGS, "allow(descriptors): that idle connections of a pool may take" },
	{ "release", py_release, METH_NOARGS, "release(): give memory back that no body is in" },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_gets", NULL, -1, module_methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__gets(void)
{
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
		PyErr_SetString(PyExc_ImportError, "libcurl cannot be set up");
		return NULL;
	}
	PyObject *made = PyModule_Create(&module), *type = made ? PyType_FromSpec(&pool_spec) : NULL;
	if (!type || !body_ready() || PyModule_AddObject(made, "Pool", type) < 0 || PyModule_AddIntMacro(made, GET_ABANDONED) < 0 ||
	    PyModule_AddIntMacro(made, GET_DONE) < 0 || PyModule_AddIntMacro(made, GET_ANSWERED) < 0 ||
	    PyModule_AddIntMacro(made, GET_FAILED) < 0 || PyModule_AddIntConstant(made, "MOST_BYTES", (long)MOST_BYTES) < 0 ||
	    PyModule_AddIntConstant(made, "MOST_PART_BYTES", (long)MOST_PART_BYTES) < 0) {
		Py_XDECREF(made);
		return NULL;
	}
	return made;
}
