/* SPDX-License-Identifier: MIT */
/* pagemerge._core: the C core for Python. */
#include "binding.h"

#include "maps.h"
#include "page.h"
#include "pool.h"
#include "proto.h"
#include "protocol.h"
#include "step_back.h"

#include <errno.h>

static PyObject *hash_pages(PyObject *Py_UNUSED(module), PyObject *arg)
{
	PyObject *result = NULL;
	Py_buffer view;
	uint64_t *out;
	size_t n;

	if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	n = (size_t)view.len / PM_PAGE_SIZE;
	result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(*out)));
	if (result) {
		out = (uint64_t *)(void *)PyBytes_AsString(result);
		Py_BEGIN_ALLOW_THREADS;
		pm_page_hashes(view.buf, n, out);
		Py_END_ALLOW_THREADS;
	}
	PyBuffer_Release(&view);
	return result;
}

static PyObject *page_keys(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *result;
	Py_buffer view;
	int whole;
	size_t n;

	if (!PyArg_ParseTuple(args, "y*p:page_keys", &view, &whole))
		return NULL;
	n = (size_t)view.len / PM_PAGE_SIZE;
	result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(uint64_t)));
	if (result)
		pm_page_keys(view.buf, n, whole != 0, (uint64_t *)(void *)PyBytes_AsString(result));
	PyBuffer_Release(&view);
	return result;
}

static PyObject *zero_pages(PyObject *Py_UNUSED(module), PyObject *arg)
{
	PyObject *result = NULL;
	Py_buffer view;
	size_t n;

	if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	n = (size_t)view.len / PM_PAGE_SIZE;
	result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)n);
	if (result) {
		char *out = PyBytes_AsString(result);

		Py_BEGIN_ALLOW_THREADS;
		for (size_t i = 0; i < n; i++)
			out[i] = pm_page_is_zero((const char *)view.buf + i * PM_PAGE_SIZE);
		Py_END_ALLOW_THREADS;
	}
	PyBuffer_Release(&view);
	return result;
}

static PyObject *check_message(PyObject *Py_UNUSED(module), PyObject *args)
{
	const char *reason = NULL;
	Py_buffer view;
	int to_daemon, err;

	if (!PyArg_ParseTuple(args, "y*p", &view, &to_daemon))
		return NULL;
	err = pm_message_check(view.buf, (size_t)view.len, to_daemon, &reason);
	PyBuffer_Release(&view);
	if (err) {
		PyErr_SetString(PyExc_ValueError, reason ? reason : "not a message");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *list_of_maps(const struct pm_maps *maps)
{
	PyObject *list = PyList_New((Py_ssize_t)maps->count);

	for (size_t i = 0; list && i < maps->count; i++) {
		const struct pm_map *map = &maps->maps[i];
		PyObject *path = PyUnicode_DecodeFSDefaultAndSize(map->path, (Py_ssize_t)map->path_length), *item = NULL;
		unsigned long dev = (unsigned long)map->major << 20 | map->minor;

		if (path)
			item = Py_BuildValue("KKs#KkKN", (unsigned long long)map->start, (unsigned long long)map->end,
					     map->perms, (Py_ssize_t)4, (unsigned long long)map->offset, dev,
					     (unsigned long long)map->inode, path);
		if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0)
			Py_CLEAR(list);
	}
	return list;
}

static PyObject *parse_maps(PyObject *Py_UNUSED(module), PyObject *arg)
{
	struct pm_maps maps = {0};
	PyObject *result = NULL;
	Py_buffer view;
	int err;

	if (PyObject_GetBuffer(arg, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	Py_BEGIN_ALLOW_THREADS;
	err = pm_maps_parse(view.buf, (size_t)view.len, &maps);
	Py_END_ALLOW_THREADS;
	if (err == -EINVAL)
		PyErr_Format(PyExc_ValueError, "line %zu is not one of /proc/PID/maps", maps.count + 1);
	else if (err)
		PyErr_NoMemory();
	else
		result = list_of_maps(&maps);
	PyBuffer_Release(&view);
	pm_maps_deinit(&maps);
	return result;
}

static PyObject *step_back(PyObject *Py_UNUSED(module), PyObject *further)
{
	int on = PyObject_IsTrue(further), err;

	if (on < 0)
		return NULL;
	err = pm_step_back(on);
	if (err) {
		errno = -err;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
	{"hash_pages", hash_pages, METH_O, "XXH3-64 of every whole page of a readable buffer, as packed native uint64."},
	{"page_keys", page_keys, METH_VARARGS, "What an agent answers to PM_HASH of every whole page of a readable buffer, as packed native uint64."},
	{"zero_pages", zero_pages, METH_O, "One byte a page: 1 where the page is all zero."},
	{"check_message", check_message, METH_VARARGS, "ValueError, with the reason, where a datagram is not well-formed."},
	{"parse_maps", parse_maps, METH_O,
	 "Lines of /proc/PID/maps: (start, end, perms, offset, dev, inode, path); dev is major << 20 | minor."},
	{"step_back", step_back, METH_O, "Have the calling thread let others go first, as ksmd does, or further than that. OSError."},
	{"inject", pm_py_inject, METH_VARARGS, "System calls made by another process: (results, nanoseconds stopped)."},
	{"slice_end", pm_py_slice_end, METH_VARARGS, "Where unmerging is to pause: (end, pages, present, merged)."},
	{NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
	if (PyModule_AddIntConstant(module, "PAGE_SIZE", PM_PAGE_SIZE) < 0 ||
	    PyModule_AddIntConstant(module, "PROTOCOL_VERSION", PM_PROTOCOL_VERSION) < 0 ||
	    PyModule_AddIntConstant(module, "MESSAGE_MAX", PM_MESSAGE_MAX) < 0 ||
	    PyModule_AddIntConstant(module, "SEGMENT_PAGES", PM_SEGMENT_PAGES) < 0 ||
	    PyModule_AddStringConstant(module, "HASH_VARIANT", pm_hash_variant()) < 0)
		return -1;
	if (pm_add_census(module) < 0)
		return -1;
	return pm_add_scanner(module);
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, (void *)module_exec},
	{0, NULL},
};

static struct PyModuleDef module = {
	.m_base = PyModuleDef_HEAD_INIT,
	.m_name = "pagemerge._core",
	.m_doc = "The C core: per-page work, without the interpreter lock.",
	.m_methods = module_methods,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void)
{
	return PyModuleDef_Init(&module);
}
