/* SPDX-License-Identifier: MIT */
/* What the files of the CPython glue share: the limited API, and one function a file that adds its types. */
#ifndef PM_BINDING_H
#define PM_BINDING_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#pragma GCC diagnostic ignored "-Wpedantic" /* type slots hold functions as void pointers */

int pm_add_census(PyObject *module);
int pm_add_scanner(PyObject *module);
PyObject *pm_py_inject(PyObject *module, PyObject *args);
PyObject *pm_py_slice_end(PyObject *module, PyObject *args);

#endif
