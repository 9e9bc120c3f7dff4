/* What Python gives that more than one method takes: headers, and what opens the door. The texts stay Python's. */
#include "module.h"

#include <string.h>

bool take_lines(PyObject *given, const char **lines, unsigned most)
{
	const Py_ssize_t count = PyTuple_GET_SIZE(given);
	if (count > (Py_ssize_t)most) {
		PyErr_SetString(PyExc_ValueError, "too many headers");
		return false;
	}
	for (Py_ssize_t i = 0; i < count; i++)
		if (!PyArg_Parse(PyTuple_GET_ITEM(given, i), "s", &lines[i]))
			return false;
		else if (!strstr(lines[i], ": ") || strpbrk(lines[i], "\r\n")) {
			PyErr_SetString(PyExc_ValueError, "no header");
			return false;
		}
	return true;
}

bool take_credentials(PyObject *given, struct credentials *c)
{
	PyObject *lines;
	if (given == Py_None)
		return true;
	if (!PyTuple_Check(given)) {
		PyErr_SetString(PyExc_TypeError, "credentials are a tuple");
		return false;
	}
	if (PyTuple_GET_SIZE(given) == 3)
		return PyArg_ParseTuple(given, "ssz", &c->access, &c->secret, &c->token);
	return PyArg_ParseTuple(given, "zO!", &c->query, &PyTuple_Type, &lines) && take_lines(lines, c->lines, LINES);
}
