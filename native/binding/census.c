// SPDX-License-Identifier: MIT
/* pagemerge._core.Census: see native/core/census.h. */
#include "binding.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "census.h"

typedef struct {
	PyObject_HEAD
	struct pm_census *census;
	bool busy; /* reading or grouping, without the interpreter lock */
} Census;

static PyObject *fail(int error, const char *call)
{
	if (error == -ENOMEM)
		return PyErr_NoMemory();
	if (error == -EINVAL)
		return PyErr_Format(PyExc_ValueError, "%s: called with a wrong argument, or out of order", call);
	errno = -error;
	return PyErr_SetFromErrnoWithFilename(PyExc_OSError, call);
}

static PyObject *census_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "sample", "salt", "threads", NULL };
	unsigned int sample = 1, threads = 0;
	unsigned long long salt = 0;
	Census *self;
	int error;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|IKI:Census", names, &sample, &salt, &threads))
		return NULL;
	self = (Census *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
	if (!self)
		return NULL;
	error = pm_census_create(sample, salt, threads, &self->census);
	if (error) {
		Py_DECREF(self);
		return fail(error, "Census");
	}
	return (PyObject *)self;
}

static void census_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);

	pm_census_destroy(((Census *)object)->census);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
	Py_DECREF(type);
}

static bool enter(Census *self)
{
	if (self->busy) {
		PyErr_SetString(PyExc_RuntimeError, "the census is in use by another thread");
		return false;
	}
	return true;
}

static PyObject *census_add_process(PyObject *object, PyObject *args)
{
	Census *self = (Census *)object;
	int pid, fd, mem_fd = -1, space;

	if (!PyArg_ParseTuple(args, "ii|i:add_process", &pid, &fd, &mem_fd) || !enter(self))
		return NULL;
	space = pm_census_add_process(self->census, pid, fd, mem_fd);
	return space < 0 ? fail(space, "add_process") : PyLong_FromLong(space);
}

static PyObject *census_add_file(PyObject *object, PyObject *args)
{
	Census *self = (Census *)object;
	int fd, space;

	if (!PyArg_ParseTuple(args, "i:add_file", &fd) || !enter(self))
		return NULL;
	space = pm_census_add_file(self->census, fd);
	return space < 0 ? fail(space, "add_file") : PyLong_FromLong(space);
}

static PyObject *census_add_region(PyObject *object, PyObject *args)
{
	Census *self = (Census *)object;
	unsigned long long start, end, offset = 0;
	int64_t region;
	int space;

	if (!PyArg_ParseTuple(args, "iKK|K:add_region", &space, &start, &end, &offset) || !enter(self))
		return NULL;
	region = pm_census_add_region(self->census, space, start, end, offset);
	return region < 0 ? fail((int)region, "add_region") : PyLong_FromLongLong(region);
}

static PyObject *without_lock(Census *self, int (*fn)(struct pm_census *), const char *name)
{
	int error;

	if (!enter(self))
		return NULL;
	self->busy = true;
	Py_BEGIN_ALLOW_THREADS
	error = fn(self->census);
	Py_END_ALLOW_THREADS
	self->busy = false;
	if (error)
		return fail(error, name);
	Py_RETURN_NONE;
}

static PyObject *census_read(PyObject *object, PyObject *Py_UNUSED(unused))
{
	return without_lock((Census *)object, pm_census_read, "read");
}

static PyObject *census_look_again(PyObject *object, PyObject *Py_UNUSED(unused))
{
	return without_lock((Census *)object, pm_census_look_again, "look_again");
}

static PyObject *census_progress(PyObject *object, PyObject *Py_UNUSED(unused))
{
	uint64_t done, total;

	pm_census_progress(((Census *)object)->census, &done, &total);
	return Py_BuildValue("KK", (unsigned long long)done, (unsigned long long)total);
}

static PyObject *census_cancel(PyObject *object, PyObject *Py_UNUSED(unused))
{
	pm_census_cancel(((Census *)object)->census);
	Py_RETURN_NONE;
}

static bool set_number(PyObject *dict, const char *name, uint64_t value)
{
	PyObject *number = PyLong_FromUnsignedLongLong(value);
	bool good = number && !PyDict_SetItemString(dict, name, number);

	Py_XDECREF(number);
	return good;
}

static bool set_float(PyObject *dict, const char *name, double value)
{
	PyObject *number = PyFloat_FromDouble(value);
	bool good = number && !PyDict_SetItemString(dict, name, number);

	Py_XDECREF(number);
	return good;
}

static PyObject *totals_to_dict(const struct pm_census_totals *t)
{
	const struct {
		const char *name;
		uint64_t value;
	} whole[] = {
		{ "held", t->held }, { "volatile", t->volatile_ }, { "distinct", t->distinct }, { "shared", t->shared },
		{ "sharing", t->sharing }, { "unshared", t->unshared }, { "aliases", t->aliases },
		{ "merging", t->merging }, { "frames_saved", t->frames_saved }, { "within", t->within },
		{ "between", t->between }, { "chains", t->chains }, { "dups", t->dups }, { "already", t->already },
		{ "zero", t->zero }, { "zero_frames", t->zero_frames }, { "zero_spaces", t->zero_spaces }, { "zero_huge", t->zero_huge },
	};
	const struct {
		const char *name;
		double value;
	} square[] = {
		{ "shared2", t->shared2 }, { "sharing2", t->sharing2 }, { "unshared2", t->unshared2 },
		{ "frames_saved2", t->frames_saved2 }, { "within2", t->within2 }, { "between2", t->between2 },
		{ "merging2", t->merging2 }, { "volatile2", t->volatile2 }, { "distinct2", t->distinct2 },
	};
	PyObject *dict = PyDict_New();
	size_t i;

	if (!dict)
		return NULL;
	for (i = 0; i < sizeof(whole) / sizeof(*whole); i++)
		if (!set_number(dict, whole[i].name, whole[i].value))
			goto fail;
	for (i = 0; i < sizeof(square) / sizeof(*square); i++)
		if (!set_float(dict, square[i].name, square[i].value))
			goto fail;
	return dict;
fail:
	Py_DECREF(dict);
	return NULL;
}

enum { MATRICES_MAX = 8, TOP_MAX = 256 };

/* A party for each region, as packed uint32, and a matrix to fill. */
static bool take_pairs(Census *self, PyObject *item, struct pm_census_pairs *pairs, Py_buffer *view, PyObject **matrix)
{
	PyObject *party;
	unsigned int parties;

	if (!PyArg_ParseTuple(item, "OI:parties", &party, &parties))
		return false;
	if (parties > 4096) {
		PyErr_SetString(PyExc_ValueError, "a matrix has at most 4096 parties");
		return false;
	}
	if (PyObject_GetBuffer(party, view, PyBUF_SIMPLE))
		return false;
	if ((size_t)view->len != pm_census_regions(self->census) * sizeof(uint32_t)) {
		PyBuffer_Release(view);
		PyErr_SetString(PyExc_ValueError, "parties: needs one uint32 for each region");
		return false;
	}
	*matrix = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((size_t)parties * parties * sizeof(double)));
	if (!*matrix) {
		PyBuffer_Release(view);
		return false;
	}
	memset(PyBytes_AsString(*matrix), 0, (size_t)parties * parties * sizeof(double));
	*pairs = (struct pm_census_pairs){
		.party = view->buf, .parties = parties, .matrix = (double *)(void *)PyBytes_AsString(*matrix),
	};
	return true;
}

static PyObject *top_to_list(const struct pm_census_top *top, size_t n)
{
	PyObject *list = PyList_New(0);
	size_t i;

	for (i = 0; list && i < n; i++) {
		PyObject *row = Py_BuildValue("KKKKKIK", (unsigned long long)top[i].hash, (unsigned long long)top[i].pages,
					      (unsigned long long)top[i].frames, (unsigned long long)top[i].spaces,
					      (unsigned long long)top[i].regions, top[i].region,
					      (unsigned long long)top[i].page);

		if (!row || PyList_Append(list, row))
			Py_CLEAR(list);
		Py_XDECREF(row);
	}
	return list;
}

static PyObject *census_group(PyObject *object, PyObject *args)
{
	Census *self = (Census *)object;
	struct pm_census_pairs pairs[MATRICES_MAX];
	struct pm_census_top top[TOP_MAX];
	struct pm_census_totals totals;
	Py_buffer view[MATRICES_MAX];
	PyObject *list, *matrix[MATRICES_MAX], *matrices = NULL, *dict = NULL, *tops = NULL, *result = NULL;
	unsigned int limit, wanted = 0;
	Py_ssize_t i, n = 0, count;
	size_t ntop;
	int error;

	if (!PyArg_ParseTuple(args, "IO!|I:group", &limit, &PyList_Type, &list, &wanted) || !enter(self))
		return NULL;
	count = PyList_Size(list);
	if (count > MATRICES_MAX || wanted > TOP_MAX)
		return PyErr_Format(PyExc_ValueError, "at most %d matrices and %d contents", MATRICES_MAX, TOP_MAX);
	for (; n < count; n++)
		if (!take_pairs(self, PyList_GetItem(list, n), &pairs[n], &view[n], &matrix[n]))
			goto out;
	ntop = wanted;
	self->busy = true;
	Py_BEGIN_ALLOW_THREADS
	error = pm_census_group(self->census, limit, pairs, (size_t)n, top, &ntop, &totals);
	Py_END_ALLOW_THREADS
	self->busy = false;
	if (error) {
		fail(error, "group");
		goto out;
	}
	dict = totals_to_dict(&totals);
	tops = top_to_list(top, ntop);
	matrices = PyList_New(0);
	for (i = 0; matrices && i < n; i++)
		if (PyList_Append(matrices, matrix[i]))
			Py_CLEAR(matrices);
	if (dict && tops && matrices)
		result = PyTuple_Pack(3, dict, matrices, tops);
out:
	for (i = 0; i < n; i++) {
		PyBuffer_Release(&view[i]);
		Py_DECREF(matrix[i]);
	}
	Py_XDECREF(dict);
	Py_XDECREF(tops);
	Py_XDECREF(matrices);
	return result;
}

static PyObject *census_runs(PyObject *object, PyObject *args)
{
	Census *self = (Census *)object;
	struct pm_census_run_totals out;
	unsigned int gap;
	PyObject *bins;
	int error, i;

	if (!PyArg_ParseTuple(args, "I:runs", &gap) || !enter(self))
		return NULL;
	self->busy = true;
	Py_BEGIN_ALLOW_THREADS
	error = pm_census_runs(self->census, gap, &out);
	Py_END_ALLOW_THREADS
	self->busy = false;
	if (error)
		return fail(error, "runs");
	bins = PyList_New(0);
	for (i = 0; bins && i < PM_CENSUS_RUN_BINS; i++) {
		PyObject *number = PyLong_FromUnsignedLongLong(out.bins[i]);

		if (!number || PyList_Append(bins, number))
			Py_CLEAR(bins);
		Py_XDECREF(number);
	}
	if (!bins)
		return NULL;
	return Py_BuildValue("KKKN", (unsigned long long)out.runs, (unsigned long long)out.pages,
			     (unsigned long long)out.gap_pages, bins);
}

static PyObject *census_select(PyObject *object, PyObject *Py_UNUSED(unused))
{
	Census *self = (Census *)object;
	size_t n = pm_census_regions(self->census);
	PyObject *order, *saving, *result = NULL;
	int error;

	if (!enter(self))
		return NULL;
	order = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(uint32_t)));
	saving = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(double)));
	if (order && saving) {
		uint32_t *o = (uint32_t *)(void *)PyBytes_AsString(order);
		double *s = (double *)(void *)PyBytes_AsString(saving);

		self->busy = true;
		Py_BEGIN_ALLOW_THREADS
		error = pm_census_select(self->census, o, s, &n);
		Py_END_ALLOW_THREADS
		self->busy = false;
		if (error)
			fail(error, "select");
		else
			result = Py_BuildValue("y#y#", (char *)o, (Py_ssize_t)(n * sizeof(*o)), (char *)s,
					       (Py_ssize_t)(n * sizeof(*s)));
	}
	Py_XDECREF(order);
	Py_XDECREF(saving);
	return result;
}

static PyObject *census_regions(PyObject *object, PyObject *Py_UNUSED(unused))
{
	Census *self = (Census *)object;
	size_t i, n = pm_census_regions(self->census);
	PyObject *bytes;

	if (!enter(self))
		return NULL;
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(struct pm_census_region_info)));
	if (!bytes)
		return NULL;
	for (i = 0; i < n; i++) {
		struct pm_census_region_info info;

		pm_census_region(self->census, i, &info);
		memcpy(PyBytes_AsString(bytes) + i * sizeof(info), &info, sizeof(info));
	}
	return bytes;
}

static PyObject *census_spaces(PyObject *object, PyObject *Py_UNUSED(unused))
{
	Census *self = (Census *)object;
	size_t i, n = pm_census_spaces(self->census);
	PyObject *list = PyList_New(0);

	for (i = 0; list && i < n; i++) {
		struct pm_census_space_info info;
		PyObject *row;

		pm_census_space(self->census, i, &info);
		row = Py_BuildValue("Ii", info.state, info.error);
		if (!row || PyList_Append(list, row))
			Py_CLEAR(list);
		Py_XDECREF(row);
	}
	return list;
}

static PyObject *census_held_bytes(PyObject *object, PyObject *Py_UNUSED(unused))
{
	return PyLong_FromUnsignedLongLong(pm_census_bytes(((Census *)object)->census));
}

static PyObject *census_frames_known(PyObject *object, PyObject *Py_UNUSED(unused))
{
	return PyBool_FromLong(pm_census_frames_known(((Census *)object)->census));
}

static PyObject *census_huge_known(PyObject *object, PyObject *Py_UNUSED(unused))
{
	return PyBool_FromLong(pm_census_huge_known(((Census *)object)->census));
}

static PyMethodDef methods[] = {
	{ "add_process", census_add_process, METH_VARARGS, "Add a process by pid, pagemap and mem descriptors; its number." },
	{ "add_file", census_add_file, METH_VARARGS, "Add a file by descriptor; its number." },
	{ "add_region", census_add_region, METH_VARARGS, "Add a region (space, start, end, file offset); its number." },
	{ "read", census_read, METH_NOARGS, "Read and hash everything that was added." },
	{ "look_again", census_look_again, METH_NOARGS, "Read once more; what differs is volatile." },
	{ "progress", census_progress, METH_NOARGS, "(pages done, pages in all)." },
	{ "cancel", census_cancel, METH_NOARGS, "Make a read in another thread end with InterruptedError." },
	{ "group", census_group, METH_VARARGS, "Group by content: (totals, matrices, top contents)." },
	{ "runs", census_runs, METH_VARARGS, "Runs that the engine would map: (runs, pages, gap pages, bins)." },
	{ "select", census_select, METH_NOARGS, "Regions by usefulness: packed uint32 and double." },
	{ "regions", census_regions, METH_NOARGS, "Packed numbers of each region." },
	{ "spaces", census_spaces, METH_NOARGS, "(state, errno) of each space." },
	{ "held_bytes", census_held_bytes, METH_NOARGS, "Memory held at the peak." },
	{ "frames_known", census_frames_known, METH_NOARGS, "Whether the kernel showed physical page numbers." },
	{ "huge_known", census_huge_known, METH_NOARGS, "Whether the kernel told which pages are huge." },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_new, (void *)census_new },
	{ Py_tp_dealloc, (void *)census_dealloc },
	{ Py_tp_methods, methods },
	{ Py_tp_doc, (void *)"What the present anonymous pages of processes hold, by hash." },
	{ 0, NULL },
};

static PyType_Spec spec = {
	.name = "pagemerge._core.Census",
	.basicsize = sizeof(Census),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = slots,
};

int pm_add_census(PyObject *module)
{
	PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
	int error;

	if (!type)
		return -1;
	error = PyModule_AddObjectRef(module, "Census", type);
	Py_DECREF(type);
	return error;
}
