/* What the parts of Python's side know of each other. */
#ifndef LUXFUSE_GETS_MODULE_H
#define LUXFUSE_GETS_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "gets.h"

typedef struct {
	PyObject_HEAD
	struct body *body;
	Py_ssize_t size;
	PyObject *checksums;
} Body;

#define TEXTS 9

typedef struct {
	PyObject_HEAD
	struct pool *pool;
	struct target target;
	char *texts[TEXTS];
} Pool;

PyObject *py_requests(PyObject *self, PyObject *args);

bool body_ready(void); /* once; false: there is an exception */
Body *body_new(Py_ssize_t size); /* NULL: there is an exception */

/* false: there is an exception */
bool take_lines(PyObject *given, const char **lines, unsigned most); /* a tuple of "name: value" */
bool take_credentials(PyObject *given, struct credentials *c);

#endif
