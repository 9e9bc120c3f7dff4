/* Entries of a directory as READDIRPLUS wants them, of what Python knows of them.
 *
 * Python reads a batch of names, decides what holds for most of them in common, and has the lot packed here in one call:
 * in Python alone an entry costs 5 us and more, most of it for objects that live for as long. What an entry says of itself goes
 * into its attributes as `vfs.attributes.stat_of` would have it; `test_packing` compares the two. An entry for which
 * something else holds ends the call, and Python says its attributes itself: one that is changed here, is no file,
 * directory or symlink, is not believed any more, or hides something as long as it is not asked for.
 *
 * Nothing is kept here: so there is nothing to revoke, and lookup counts mean nothing (see lane.c).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "lane.h"

#include <linux/fuse.h>
#include <string.h>
#include <sys/stat.h>

#define LONGEST_S 1e8 /* as `fuse.attributes` has it */

enum kind { FILE_KIND, DIRECTORY_KIND, SYMLINK_KIND };			 /* of `types.Kind`, as far as it is packed here */
enum silence { SILENCE_LEFT, SILENCE_HOLDS, SILENCE_LACKS };		 /* `vfs.descriptions.Silence` */
enum field { INODE, KIND, SIZE, MTIME, CHECKED, ATTRIBUTES, MODE, UID, GID, ATIME, CTIME, RDEV, FIELDS };

static const char *const field_names[FIELDS] = { "inode", "kind", "size", "mtime_ns", "checked_s", "attributes",
						 "mode", "uid", "gid", "atime_ns", "ctime_ns", "rdev" };
static PyObject *fields[FIELDS]; /* guarded by the interpreter lock, like all here */

bool entries_begin(void)
{
	for (unsigned i = 0; i < FIELDS; i++)
		if (!fields[i] && !(fields[i] = PyUnicode_InternFromString(field_names[i])))
			return false;
	return true;
}

/* Returns the room that is taken then; as much as before: there is none. */
static size_t put(char *to, size_t size, size_t used, const char *name, size_t length, uint64_t cookie, const struct prompt_attributes *a)
{
	const size_t taken = FUSE_NAME_OFFSET_DIRENTPLUS + length, needed = FUSE_DIRENT_ALIGN(taken);
	if (needed > size - used)
		return used;
	struct fuse_direntplus out = { .dirent = { .ino = a->ino, .off = cookie, .namelen = (uint32_t)length,
						   .type = (a->mode & S_IFMT) >> 12 } };
	prompt_fill_entry(&out.entry_out, a);
	memcpy(to + used, &out, FUSE_NAME_OFFSET_DIRENTPLUS);
	memcpy(to + used + FUSE_NAME_OFFSET_DIRENTPLUS, name, length);
	memset(to + used + taken, 0, needed - taken);
	return used + needed;
}

/* ------------------------------------------------------------------ what an entry says */

/* A number that an object has; `otherwise` where it has None. Errors are found by PyErr_Occurred at the end. */
static long long number_of(PyObject *object, enum field field, long long otherwise)
{
	PyObject *value = PyErr_Occurred() ? NULL : PyObject_GetAttr(object, fields[field]);
	if (!value)
		return otherwise;
	const long long found = value == Py_None ? otherwise : PyLong_AsLongLong(value);
	Py_DECREF(value);
	return found;
}

static double seconds_of(PyObject *object, enum field field)
{
	PyObject *value = PyErr_Occurred() ? NULL : PyObject_GetAttr(object, fields[field]);
	const double found = value ? PyFloat_AsDouble(value) : 0;
	Py_XDECREF(value);
	return found;
}

/* As `core.freshness.remaining_s`; nothing is believed that is older than `from_s`. */
static double left_s(const struct packing *p, double checked_s)
{
	if (checked_s < p->from_s || checked_s > p->now_s + 1)
		return 0;
	const double left = (checked_s < p->now_s ? checked_s : p->now_s) + p->ttl_s - p->now_s;
	return left > LONGEST_S ? LONGEST_S : left > 0 ? left : 0;
}

static uint32_t mode_of(const struct packing *p, long long kind, PyObject *said)
{
	static const uint32_t types[] = { S_IFREG, S_IFDIR, S_IFLNK };
	const long long otherwise = (kind == FILE_KIND ? 0666 : 0777) & ~(long long)p->umask;
	const long long known = said ? number_of(said, MODE, otherwise) : otherwise;
	return types[kind] | (uint32_t)(kind == SYMLINK_KIND ? 0777 : known);
}

/* As `vfs.attributes.stat_of`. `said`: what is known beside a listing, NULL: nothing. */
static void fill(const struct packing *p, PyObject *entry, long long kind, PyObject *said, struct prompt_attributes *a)
{
	const long long size = kind == DIRECTORY_KIND ? 0 : number_of(entry, SIZE, 0), listed = number_of(entry, MTIME, 0);
	const long long otherwise = listed ? listed : p->mtime_ns, mtime = said ? number_of(said, MTIME, otherwise) : otherwise;
	const long long ctime = said ? number_of(said, CTIME, 0) : 0;
	a->size = (uint64_t)size;
	a->blocks = ((uint64_t)size + 511) >> 9;
	a->mode = mode_of(p, kind, said);
	a->nlink = 1;
	a->uid = said ? (uint32_t)number_of(said, UID, p->uid) : p->uid;
	a->gid = said ? (uint32_t)number_of(said, GID, p->gid) : p->gid;
	a->rdev = said ? (uint32_t)number_of(said, RDEV, 0) : 0;
	a->mtime_ns = mtime;
	a->atime_ns = said ? number_of(said, ATIME, mtime) : mtime;
	a->ctime_ns = ctime > mtime ? ctime : mtime;
}

/* Whether an entry is one for which the common terms hold; then `a` is filled but for its inode. */
static bool holds(const struct packing *p, PyObject *entry, PyObject *inode, struct prompt_attributes *a)
{
	const long long kind = number_of(entry, KIND, -1);
	const double left = left_s(p, seconds_of(entry, CHECKED));
	if (PyErr_Occurred() || left <= 0 || kind < FILE_KIND || kind > SYMLINK_KIND || (kind == DIRECTORY_KIND && !p->directories))
		return false;
	if (p->aside != Py_None && PySequence_Contains(p->aside, inode) != 0)
		return false;
	PyObject *said = PyObject_GetAttr(entry, fields[ATTRIBUTES]);
	const bool silent = said == Py_None, taken = said && !(silent && p->silence == SILENCE_LEFT);
	if (taken) {
		fill(p, entry, kind, silent ? NULL : said, a);
		a->entry_ns = a->attr_ns = silent && p->silence == SILENCE_LACKS ? 0 : (int64_t)(left * 1e9);
	}
	Py_XDECREF(said);
	return taken && !PyErr_Occurred();
}

/* ------------------------------------------------------------------ packing */

/* What the position behind an entry is called: its inode, unless another number was given for that. */
static bool cookie_of(const struct packing *p, PyObject *inode, uint64_t *out)
{
	PyObject *other = p->cookies == Py_None ? NULL : PyDict_GetItemWithError(p->cookies, inode);
	*out = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLong(other ? other : inode);
	return !PyErr_Occurred();
}

/* Returns whether the entry is packed: else it is left, there is no room for it (`full`), or an exception is set. */
static bool pack_item(struct packing *p, PyObject *item)
{
	if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2 || !PyBytes_Check(PyTuple_GET_ITEM(item, 0))) {
		PyErr_SetString(PyExc_TypeError, "an entry: a tuple of a name and what is known of it");
		return false;
	}
	PyObject *name = PyTuple_GET_ITEM(item, 0), *entry = PyTuple_GET_ITEM(item, 1), *inode = PyObject_GetAttr(entry, fields[INODE]);
	struct prompt_attributes a = { 0 };
	uint64_t cookie;
	bool done = false;
	if (inode && holds(p, entry, inode, &a) && cookie_of(p, inode, &cookie)) {
		const uint64_t number = PyLong_AsUnsignedLongLong(inode);
		if (!PyErr_Occurred()) {
			a.ino = p->base | number;
			const size_t used = put(p->to, p->size, p->used, PyBytes_AS_STRING(name), (size_t)PyBytes_GET_SIZE(name), cookie, &a);
			p->full = !(done = used != p->used);
			p->used = used;
		}
	}
	Py_XDECREF(inode);
	return done;
}

bool entries_pack(struct packing *p, PyObject *list, Py_ssize_t *at)
{
	p->full = false;
	while (*at < PyList_GET_SIZE(list)) { /* which nobody changes, but what runs in between need not be C */
		PyObject *item = Py_NewRef(PyList_GET_ITEM(list, *at));
		const bool packed = pack_item(p, item);
		Py_DECREF(item);
		if (!packed)
			break;
		++*at;
	}
	return !PyErr_Occurred();
}

size_t entries_pack_one(const struct packing *p, const char *name, size_t length, uint64_t cookie, const struct prompt_attributes *a)
{
	return put(p->to, p->size, p->used, name, length, cookie, a);
}
