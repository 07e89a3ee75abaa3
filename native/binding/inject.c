/* SPDX-License-Identifier: MIT */
/* pagemerge._core.inject, slice_end: system calls in another process, and how much is to be unmerged by one. */
#include "binding.h"

#include "inject.h"
#include "slice.h"

#include <errno.h>

static int call_from_tuple(PyObject *tuple, struct pm_call *call)
{
	Py_ssize_t n = PyTuple_Check(tuple) ? PyTuple_Size(tuple) : 0;

	if (n < 1 || n > 7) {
		PyErr_SetString(PyExc_TypeError, "a call is a tuple of its number and up to 6 arguments");
		return -1;
	}
	call->number = PyLong_AsLong(PyTuple_GetItem(tuple, 0));
	for (Py_ssize_t i = 1; i < n && !PyErr_Occurred(); i++)
		call->args[i - 1] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, i));
	return PyErr_Occurred() ? -1 : 0;
}

PyObject *pm_py_inject(PyObject *Py_UNUSED(module), PyObject *args)
{
	PyObject *list, *results = NULL;
	unsigned long long stopped;
	struct pm_call *calls;
	uint64_t ns = 0;
	Py_ssize_t n;
	int pid, err;

	if (!PyArg_ParseTuple(args, "iO", &pid, &list))
		return NULL;
	if (!PyList_Check(list)) {
		PyErr_SetString(PyExc_TypeError, "the calls are a list");
		return NULL;
	}
	n = PyList_Size(list);
	calls = PyMem_Calloc((size_t)n + 1, sizeof(*calls));
	if (!calls)
		return PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < n; i++)
		if (call_from_tuple(PyList_GetItem(list, i), &calls[i]) < 0)
			goto out;
	Py_BEGIN_ALLOW_THREADS;
	err = pm_inject(pid, calls, (size_t)n, &ns);
	Py_END_ALLOW_THREADS;
	if (err) {
		errno = -err;
		PyErr_SetFromErrno(PyExc_OSError);
		goto out;
	}
	stopped = ns;
	results = PyList_New(n);
	for (Py_ssize_t i = 0; results && i < n; i++) {
		PyObject *value = PyLong_FromLongLong(calls[i].result);

		if (!value || PyList_SetItem(results, i, value) < 0)
			Py_CLEAR(results);
	}
	if (results)
		results = Py_BuildValue("NK", results, stopped);
out:
	PyMem_Free(calls);
	return results;
}

PyObject *pm_py_slice_end(PyObject *Py_UNUSED(module), PyObject *args)
{
	unsigned long long start, end, pages, present, merged;
	struct pm_slice most, slice;
	int pagemap, kpageflags;

	if (!PyArg_ParseTuple(args, "iiKKKKK", &pagemap, &kpageflags, &start, &end, &pages, &present, &merged))
		return NULL;
	most = (struct pm_slice){pages, present, merged};
	Py_BEGIN_ALLOW_THREADS;
	end = pm_slice_end(pagemap, kpageflags, start, end, &most, &slice);
	Py_END_ALLOW_THREADS;
	return Py_BuildValue("KKKK", end, (unsigned long long)slice.pages, (unsigned long long)slice.present,
			     (unsigned long long)slice.merged);
}
