/* SPDX-License-Identifier: MIT */
/* pagemerge._core.Scanner: see native/core/scanner.h.  Every call gives up the interpreter lock while it works. */
#include "binding.h"

#include "numbers.h"
#include "scanner.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
	PyObject_HEAD
	pthread_mutex_t lock; /* one thread at a time; never waited for with the interpreter lock held */
	bool ready;
	struct pm_scanner *scanner;
} Scanner;

/* Run statements with the scanner's lock, without the interpreter's. */
#define LOCKED(self, ...)                                                                          \
	do {                                                                                       \
		Py_BEGIN_ALLOW_THREADS;                                                            \
		pthread_mutex_lock(&(self)->lock);                                                 \
		__VA_ARGS__;                                                                       \
		pthread_mutex_unlock(&(self)->lock);                                               \
		Py_END_ALLOW_THREADS;                                                              \
	} while (0)

static PyObject *raise_errno(int err, const char *what)
{
	if (err == -ENOMEM)
		return PyErr_NoMemory();
	if (err == -EINVAL || err == -EEXIST) {
		PyErr_Format(PyExc_ValueError, "%s", what);
		return NULL;
	}
	errno = -err;
	return PyErr_SetFromErrnoWithFilename(PyExc_OSError, what); /* ESRCH becomes ProcessLookupError */
}

static PyObject *none_or_errno(int err, const char *what)
{
	if (err)
		return raise_errno(err, what);
	Py_RETURN_NONE;
}

static PyObject *no_process(unsigned long long mm)
{
	PyErr_Format(PyExc_KeyError, "%llu is no process's number", mm);
	return NULL;
}

static PyObject *scanner_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	Scanner *self;
	int err;

	if ((args && PyTuple_Size(args) > 0) || (kwargs && PyDict_Size(kwargs) > 0)) {
		PyErr_SetString(PyExc_TypeError, "Scanner() takes no arguments");
		return NULL;
	}
	self = (Scanner *)alloc(type, 0);
	if (!self)
		return NULL;
	self->scanner = PyMem_Calloc(1, sizeof(*self->scanner));
	if (!self->scanner) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	pthread_mutex_init(&self->lock, NULL);
	err = pm_scanner_init(self->scanner);
	if (err) {
		Py_DECREF(self);
		return raise_errno(err, "Scanner");
	}
	self->ready = true;
	return (PyObject *)self;
}

static void scanner_dealloc(Scanner *self)
{
	PyTypeObject *type = Py_TYPE((PyObject *)self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	if (self->ready) {
		pm_scanner_deinit(self->scanner);
		pthread_mutex_destroy(&self->lock);
	}
	PyMem_Free(self->scanner);
	release(self);
	Py_DECREF(type);
}

static PyObject *scanner_add(Scanner *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"mm", "pid", "pagemap_fd", "maps_fd", "mem_fd", "uffd_fd", "parent", NULL};
	unsigned long long mm, parent = 0;
	struct pm_mm_fds fds;
	int pid, err;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Kiiiii|K:add", names, &mm, &pid, &fds.pagemap, &fds.maps,
					 &fds.mem, &fds.uffd, &parent))
		return NULL;
	LOCKED(self, err = pm_mm_add(self->scanner, mm, pid, &fds, parent));
	return none_or_errno(err, "a process of this number is there already");
}

static PyObject *scanner_remove(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;

	if (!PyArg_ParseTuple(args, "K:remove", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			pm_mm_remove(self->scanner, mm);
	});
	if (!mm)
		return no_process(number);
	Py_RETURN_NONE;
}

/* The range of a call: whole pages. */
static bool check_range(unsigned long long start, unsigned long long end)
{
	if (start <= end && !(start % PM_PAGE_SIZE) && !(end % PM_PAGE_SIZE))
		return true;
	PyErr_Format(PyExc_ValueError, "[%llu, %llu) is no range of whole pages", start, end);
	return false;
}

static PyObject *scanner_mark(Scanner *self, PyObject *args)
{
	unsigned long long number, start, end;
	unsigned int kind;
	struct pm_mm *mm;
	int err = 0;

	if (!PyArg_ParseTuple(args, "KKKI:mark", &number, &start, &end, &kind) || !check_range(start, end))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			err = pm_mm_mark(mm, start, end, kind);
	});
	if (!mm)
		return no_process(number);
	return none_or_errno(err, "no such kind of mark");
}

static PyObject *scanner_set_all(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;
	int on;

	if (!PyArg_ParseTuple(args, "Kp:set_all", &number, &on))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			pm_mm_set_all(mm, on);
	});
	if (!mm)
		return no_process(number);
	Py_RETURN_NONE;
}

enum range_call { RANGE_EXCLUDE, RANGE_UNMERGE };

static PyObject *range_call(Scanner *self, PyObject *args, enum range_call call)
{
	unsigned long long number, start, end;
	struct pm_mm *mm;
	int err = 0;

	if (!PyArg_ParseTuple(args, "KKK", &number, &start, &end) || !check_range(start, end))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm && call == RANGE_EXCLUDE)
			err = pm_mm_exclude(mm, start, end);
		else if (mm)
			pm_mm_unmerge(self->scanner, mm, start, end);
	});
	if (!mm)
		return no_process(number);
	return none_or_errno(err, "exclude");
}

static PyObject *scanner_gone(Scanner *self, PyObject *args)
{
	unsigned long long number, start, end;
	struct pm_mm *mm;
	int discarded = 0;

	if (!PyArg_ParseTuple(args, "KKK|p:gone", &number, &start, &end, &discarded) || !check_range(start, end))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			pm_mm_gone(self->scanner, mm, start, end, discarded ? PM_GONE_DISCARDED : PM_GONE_UNMAPPED);
	});
	if (!mm)
		return no_process(number);
	Py_RETURN_NONE;
}

static PyObject *scanner_exclude(Scanner *self, PyObject *args)
{
	return range_call(self, args, RANGE_EXCLUDE);
}

static PyObject *scanner_unmerge(Scanner *self, PyObject *args)
{
	return range_call(self, args, RANGE_UNMERGE);
}

static PyObject *scanner_set_knob(Scanner *self, PyObject *args)
{
	unsigned long long value;
	const char *name;
	int err;

	if (!PyArg_ParseTuple(args, "sK:set_knob", &name, &value))
		return NULL;
	LOCKED(self, err = pm_set_knob(self->scanner, name, value));
	if (err) {
		PyErr_Format(PyExc_ValueError, err == -ENOENT ? "no knob %s" : "%s does not take this value", name);
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyObject *scanner_begin_pass(Scanner *self, PyObject *Py_UNUSED(arg))
{
	LOCKED(self, pm_begin_pass(self->scanner));
	Py_RETURN_NONE;
}

static PyObject *scanner_begin_mm(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;
	int n = 0;

	if (!PyArg_ParseTuple(args, "K:begin_mm", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			n = pm_mm_begin(self->scanner, mm);
	});
	if (!mm)
		return no_process(number);
	if (n < 0)
		return raise_errno(n, "/proc/PID/maps");
	return PyBool_FromLong(n);
}

static PyObject *scanner_scan(Scanner *self, PyObject *args)
{
	unsigned long long number, budget;
	uint64_t scanned = 0;
	bool done = true;
	struct pm_mm *mm;
	int err = 0;

	if (!PyArg_ParseTuple(args, "KK:scan", &number, &budget))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			err = pm_mm_scan(self->scanner, mm, budget, &scanned, &done);
	});
	if (!mm)
		return no_process(number);
	if (err && err != -ESRCH) /* a process that ends while it is looked at is done */
		return raise_errno(err, "PAGEMAP_SCAN");
	return Py_BuildValue("KO", (unsigned long long)scanned, done ? Py_True : Py_False);
}

static PyObject *scanner_give(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;

	if (!PyArg_ParseTuple(args, "K:give", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			mm->gives = true;
	});
	if (!mm)
		return no_process(number);
	Py_RETURN_NONE;
}

static PyObject *scanner_stop_giving(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;

	if (!PyArg_ParseTuple(args, "K:stop_giving", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			pm_give_stop(self->scanner, mm);
	});
	if (!mm)
		return no_process(number);
	Py_RETURN_NONE;
}

static PyObject *scanner_hashing(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;
	bool is = false;

	if (!PyArg_ParseTuple(args, "K:hashing", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			is = mm->hashing >= PM_HASHING_MOST;
	});
	if (!mm)
		return no_process(number);
	return PyBool_FromLong(is);
}

static PyObject *scanner_end_pass(Scanner *self, PyObject *Py_UNUSED(arg))
{
	LOCKED(self, pm_end_pass(self->scanner));
	Py_RETURN_NONE;
}

static PyObject *scanner_take_request(Scanner *self, PyObject *args)
{
	struct pm_request_out out = {0};
	unsigned long long number;
	PyObject *fds, *result;
	struct pm_mm *mm;
	char *copy = NULL;
	int n = 0;

	if (!PyArg_ParseTuple(args, "K:take_request", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			n = pm_mm_take(self->scanner, mm, &out);
		if (n > 0) /* the scanner's own is overwritten by the next request */
			copy = malloc(out.length);
		if (copy)
			memcpy(copy, out.datagram, out.length);
	});
	if (!mm)
		return no_process(number);
	if (n < 0)
		return raise_errno(n, "take_request");
	if (n > 0 && !copy)
		return PyErr_NoMemory();
	if (n == 0)
		Py_RETURN_NONE;
	fds = PyList_New((Py_ssize_t)out.nfds);
	for (size_t i = 0; fds && i < out.nfds; i++)
		if (PyList_SetItem(fds, (Py_ssize_t)i, PyLong_FromLong(out.fds[i])) < 0)
			Py_CLEAR(fds);
	result = fds ? Py_BuildValue("Ky#N", (unsigned long long)out.seq, copy, (Py_ssize_t)out.length, fds) : NULL;
	free(copy);
	return result;
}

static PyObject *scanner_put_result(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;
	Py_buffer view;
	int err = 0;

	if (!PyArg_ParseTuple(args, "Ky*:put_result", &number, &view))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			err = pm_mm_answer(self->scanner, mm, view.buf, (size_t)view.len);
	});
	PyBuffer_Release(&view);
	if (!mm)
		return no_process(number);
	return none_or_errno(err, "not the answer to a request that was made");
}

static PyObject *scanner_drop_requests(Scanner *self, PyObject *args)
{
	unsigned long long number;
	struct pm_mm *mm;

	if (!PyArg_ParseTuple(args, "K:drop_requests", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			pm_mm_lost(self->scanner, mm);
	});
	if (!mm)
		return no_process(number);
	Py_RETURN_NONE;
}

static PyObject *scanner_unmerge_all(Scanner *self, PyObject *Py_UNUSED(arg))
{
	LOCKED(self, pm_unmerge_all(self->scanner));
	Py_RETURN_NONE;
}

static PyObject *dict_of(const struct pm_number *numbers, size_t n)
{
	PyObject *dict = PyDict_New();

	for (size_t i = 0; dict && i < n; i++) {
		PyObject *value = PyLong_FromLongLong(numbers[i].value);

		if (!value || PyDict_SetItemString(dict, numbers[i].name, value) < 0)
			Py_CLEAR(dict);
		Py_XDECREF(value);
	}
	return dict;
}

static PyObject *scanner_counters(Scanner *self, PyObject *Py_UNUSED(arg))
{
	struct pm_number numbers[PM_NUMBERS_MAX];
	size_t n;

	LOCKED(self, n = pm_counters(self->scanner, numbers));
	return dict_of(numbers, n);
}

static PyObject *scanner_process(Scanner *self, PyObject *args)
{
	struct pm_number numbers[PM_NUMBERS_MAX];
	unsigned long long number;
	struct pm_mm *mm;
	size_t n = 0;

	if (!PyArg_ParseTuple(args, "K:process", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			n = pm_process(self->scanner, mm, numbers);
	});
	if (!mm)
		return no_process(number);
	return dict_of(numbers, n);
}

static PyObject *scanner_regions(Scanner *self, PyObject *args)
{
	struct pm_region_numbers *regions = NULL;
	unsigned long long number;
	PyObject *list = NULL;
	struct pm_mm *mm;
	ssize_t n = 0;

	if (!PyArg_ParseTuple(args, "K:regions", &number))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			n = pm_regions(mm, &regions);
	});
	if (!mm)
		return no_process(number);
	if (n < 0)
		return raise_errno((int)n, "regions");
	list = PyList_New(n);
	for (ssize_t i = 0; list && i < n; i++) {
		const struct pm_region_numbers *r = &regions[i];
		PyObject *name = PyUnicode_DecodeFSDefault(r->name), *item = NULL;

		if (name)
			item = Py_BuildValue("KKKKKKN", (unsigned long long)r->start, (unsigned long long)r->end,
					     (unsigned long long)r->pages, (unsigned long long)r->merged,
					     (unsigned long long)r->zero, (unsigned long long)r->unshared, name);
		if (!item || PyList_SetItem(list, i, item) < 0)
			Py_CLEAR(list);
	}
	free(regions);
	return list;
}

static PyObject *scanner_trace(Scanner *self, PyObject *args)
{
	int on, err;

	if (!PyArg_ParseTuple(args, "p:trace", &on))
		return NULL;
	LOCKED(self, err = pm_trace(self->scanner, on));
	return none_or_errno(err, "trace");
}

static PyObject *scanner_take_events(Scanner *self, PyObject *Py_UNUSED(arg))
{
	static const char *const names[PM_EVENT_KINDS] = {
		[PM_EVENT_ZERO] = "ksm_merge_one_page",
		[PM_EVENT_MERGE] = "ksm_merge_with_ksm_page",
		[PM_EVENT_SLOT] = "ksm_remove_ksm_page",
		[PM_EVENT_PAGE] = "ksm_remove_rmap_item",
	};
	struct pm_event *events = NULL;
	PyObject *list;
	uint64_t lost = 0;
	ssize_t n;

	LOCKED(self, n = pm_take_events(self->scanner, &events, &lost));
	if (n < 0)
		return raise_errno((int)n, "take_events");
	list = PyList_New(n);
	for (ssize_t i = 0; list && i < n; i++) {
		const struct pm_event *e = &events[i];
		long long slot = e->slot == PM_NO_SLOT ? -1 : (long long)e->slot;
		PyObject *item = Py_BuildValue("sdKKLi", names[e->kind], (double)e->time_ns / 1e9,
					       (unsigned long long)e->mm, (unsigned long long)e->address, slot, e->err);

		if (!item || PyList_SetItem(list, i, item) < 0)
			Py_CLEAR(list);
	}
	free(events);
	if (!list)
		return NULL;
	return Py_BuildValue("NK", list, (unsigned long long)lost);
}

static PyObject *scanner_page_merged(Scanner *self, PyObject *args)
{
	unsigned long long number, address;
	bool merged = false;
	struct pm_mm *mm;

	if (!PyArg_ParseTuple(args, "KK:page_merged", &number, &address))
		return NULL;
	LOCKED(self, {
		mm = pm_mm_find(self->scanner, number);
		if (mm)
			merged = pm_page_merged(mm, address);
	});
	if (!mm)
		return no_process(number);
	return PyBool_FromLong(merged);
}

#define METHOD(name, flags, doc) {#name, (PyCFunction)(void (*)(void))scanner_##name, flags, doc}

static PyMethodDef scanner_methods[] = {
	METHOD(add, METH_VARARGS | METH_KEYWORDS, "Take a process in; its descriptors are duplicated, -1 is a missing one."),
	METHOD(remove, METH_VARARGS, "Forget a process that has ended."),
	METHOD(give, METH_VARARGS, "The process's agent hashes pages, and writes them to the pool."),
	METHOD(stop_giving, METH_VARARGS, "It does not answer: what it has not written is not waited for."),
	METHOD(hashing, METH_VARARGS, "As many pages of a process are being hashed as may be."),
	METHOD(mark, METH_VARARGS, "Note a PM_MARK_* of the protocol."),
	METHOD(set_all, METH_VARARGS, "Merge all of a process that can be merged, or only what is marked."),
	METHOD(gone, METH_VARARGS, "Hint that memory was unmapped, moved, discarded or mapped anew."),
	METHOD(exclude, METH_VARARGS, "Never merge a range: the agent's own memory."),
	METHOD(unmerge, METH_VARARGS, "Queue requests that turn merged pages of a range back into anonymous memory."),
	METHOD(set_knob, METH_VARARGS, "Set a knob by its name."),
	METHOD(begin_pass, METH_NOARGS, "A pass begins."),
	METHOD(begin_mm, METH_VARARGS, "Refresh a process's regions; False when it has none."),
	METHOD(scan, METH_VARARGS, "Look at up to `budget` pages; (pages looked at, whether the process is done)."),
	METHOD(end_pass, METH_NOARGS, "Retire and drop segments."),
	METHOD(take_request, METH_VARARGS, "The next datagram for a process: (seq, bytes, descriptors), or None."),
	METHOD(put_result, METH_VARARGS, "Apply a PM_RESULT."),
	METHOD(drop_requests, METH_VARARGS, "The connection is lost."),
	METHOD(unmerge_all, METH_NOARGS, "run=2."),
	METHOD(counters, METH_NOARGS, "Counters by the kernel's names, and our own."),
	METHOD(process, METH_VARARGS, "Numbers of one process."),
	METHOD(regions, METH_VARARGS, "(start, end, pages seen, merged, zero, unshared, name) of each region."),
	METHOD(trace, METH_VARARGS, "Keep events for take_events."),
	METHOD(take_events, METH_NOARGS, "([(name, seconds, mm, address, slot, err)], lost) since the last call."),
	METHOD(page_merged, METH_VARARGS, "Whether the page at an address is merged."),
	{NULL, NULL, 0, NULL},
};

static PyType_Slot scanner_slots[] = {
	{Py_tp_doc, (void *)"What ksmd knows: processes, their pages, the index, the pool."},
	{Py_tp_new, (void *)scanner_new},
	{Py_tp_dealloc, (void *)scanner_dealloc},
	{Py_tp_methods, scanner_methods},
	{0, NULL},
};

static PyType_Spec scanner_spec = {
	.name = "pagemerge._core.Scanner",
	.basicsize = sizeof(Scanner),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = scanner_slots,
};

int pm_add_scanner(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&scanner_spec);
	int err;

	if (!type)
		return -1;
	err = PyModule_AddType(module, (PyTypeObject *)type);
	Py_DECREF(type);
	return err;
}
