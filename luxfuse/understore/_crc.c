/*
 * The checksums that S3 knows and Python has not: CRC-64/NVME and CRC-32C.
 *
 * Both are reflected, so that one loop of sixteen bytes a step serves both: the register is XORed into the bytes, and a table
 * for each says what it leaves. The 32 KiB of tables fit into the first cache. The interpreter lock is given up.
 *
 * Why not a library: crc32c and google-crc32c know only the second, fastcrc neither; anycrc keeps the interpreter lock while it
 * goes through a part of 8 MiB; awscrt has both, and makes botocore sign in another way as soon as it is installed.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define CRC64NVME 0x9A6C9329AC4BC9B5ULL
#define CRC32C 0x82F63B78ULL

typedef uint64_t tables_t[16][256];

static tables_t tables64, tables32;

static void fill(tables_t tables, uint64_t polynomial)
{
	for (unsigned byte = 0; byte < 256; byte++) {
		uint64_t value = byte;
		for (int bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? polynomial : 0);
		tables[0][byte] = value;
	}
	for (unsigned byte = 0; byte < 256; byte++)
		for (int step = 1; step < 16; step++)
			tables[step][byte] = tables[step - 1][byte] >> 8 ^ tables[0][tables[step - 1][byte] & 0xff];
}

static uint64_t load(const unsigned char *data)
{
	uint64_t word;
	memcpy(&word, data, 8);
	return le64toh(word);
}

static uint64_t run(tables_t tables, uint64_t value, const unsigned char *data, size_t length)
{
	for (; length >= 16; data += 16, length -= 16) {
		uint64_t first = load(data) ^ value, second = load(data + 8);
		value = 0;
		for (int byte = 0; byte < 8; byte++) {
			value ^= tables[15 - byte][first & 0xff] ^ tables[7 - byte][second & 0xff];
			first >>= 8;
			second >>= 8;
		}
	}
	for (; length; data++, length--)
		value = value >> 8 ^ tables[0][(value ^ *data) & 0xff];
	return value;
}

static PyObject *checksum(PyObject *args, tables_t tables, uint64_t ones)
{
	Py_buffer data;
	if (!PyArg_ParseTuple(args, "y*", &data))
		return NULL;
	uint64_t value;
	Py_BEGIN_ALLOW_THREADS
	value = run(tables, ones, data.buf, (size_t)data.len) ^ ones;
	Py_END_ALLOW_THREADS
	PyBuffer_Release(&data);
	return PyLong_FromUnsignedLongLong(value);
}

static PyObject *py_crc64nvme(PyObject *self, PyObject *args)
{
	(void)self;
	return checksum(args, tables64, UINT64_MAX);
}

static PyObject *py_crc32c(PyObject *self, PyObject *args)
{
	(void)self;
	return checksum(args, tables32, UINT32_MAX);
}

static PyMethodDef methods[] = {
	{ "crc64nvme", py_crc64nvme, METH_VARARGS, "crc64nvme(data) -> int" },
	{ "crc32c", py_crc32c, METH_VARARGS, "crc32c(data) -> int" },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_crc", NULL, -1, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__crc(void)
{
	fill(tables64, CRC64NVME);
	fill(tables32, CRC32C);
	return PyModule_Create(&module);
}
