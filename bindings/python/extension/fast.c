/* lockstep._fast: the two steps of a call from Python that ctypes makes slowly, in C.

   A call on a few tokens takes the library a few microseconds; describing its arrays and converting its arguments took
   Python several times that. This module does these two things and nothing else:

   view(x, name, written=False)   the array of a NumPy array (by the buffer protocol), a PyTorch tensor (by DLPack's
                                  exchange functions) or any object with __dlpack__, in place, as a View; and
                                  View.tensor(), the lockstep_tensor of it
   function(name, ...)            a function of the library that converts its arguments by their declared types and runs
                                  without the GIL

   It is no second binding: the package above it is the same, and what is not plain (another device, a dtype that is
   not known, read-only memory to be written, ctypes objects of rare kinds) goes to the Python code that ctypes users
   run, which alone raises errors. So results and errors are the same by construction.

   The limited API of Python 3.11, the first with the buffer protocol: one file for 3.11 and later. Nothing is linked:
   the package hands over the addresses of the functions that it has loaded; functions.h, made from lockstep.h by
   build.py, calls each with the types that the header declares. State is the classes the package sets once; so calls
   may come from many threads, and a forked process goes on. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lockstep.h"

enum { MAX_ARGUMENTS = 16, MAX_DIMENSIONS = 32 };

/* What the package hands over once (`use`, `use_torch`). */
static PyObject *view_class, *codes, *python_view, *python_address, *void_pointer, *ndarray;
static PyObject *torch_tensor, *torch_parameter;
static PyObject *name_dlpack, *name_device, *no_arguments, *max_version;
static PyTypeObject *tensor_type;

/* Views: the fields of an array; the class that the package derives has the methods. */

typedef struct {
    PyObject_HEAD
    PyObject *name, *shape, *strides, *owner;
    unsigned long long data;
    long long code;
    char is_torch;
} View;

static void set(PyObject **field, PyObject *value) {
    PyObject *old = *field;
    Py_XINCREF(value);
    *field = value;
    Py_XDECREF(old);
}

static int view_init(PyObject *self, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"name", "data", "code", "shape", "strides", "owner", "is_torch", NULL};
    View *v = (View *)self;
    PyObject *name, *shape, *strides, *owner;
    unsigned long long data;
    long long code;
    int is_torch = 0;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OKLO!OO|p", names, &name, &data, &code, &PyTuple_Type, &shape,
                                     &strides, &owner, &is_torch))
        return -1;
    v->data = data, v->code = code, v->is_torch = (char)is_torch;
    set(&v->name, name), set(&v->shape, shape), set(&v->strides, strides), set(&v->owner, owner);
    return 0;
}

static void view_dealloc(PyObject *self) {
    View *v = (View *)self;
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(v->name), Py_XDECREF(v->shape), Py_XDECREF(v->strides), Py_XDECREF(v->owner);
    ((freefunc)(uintptr_t)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Tensors: a lockstep_tensor, its shape and strides behind it, and what keeps the memory alive. */

typedef struct {
    PyObject_VAR_HEAD
    PyObject *owner;
    lockstep_tensor tensor;
    int64_t numbers[];
} Tensor;

static bool read_numbers(int64_t *out, PyObject *tuple, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(tuple, i);
        out[i] = item == NULL ? -1 : PyLong_AsLongLong(item);
        if (out[i] == -1 && PyErr_Occurred()) return false;
    }
    return true;
}

static PyObject *view_tensor(PyObject *self, PyObject *unused) {
    (void)unused;
    View *v = (View *)self;
    if (v->shape == NULL) return PyErr_Format(PyExc_ValueError, "the view was not initialised");
    Py_ssize_t count = PyTuple_Size(v->shape);
    bool has_strides = v->strides != Py_None && PyTuple_Check(v->strides) && count > 0;
    Py_ssize_t dimensions = count > 0 ? count : 1;
    Tensor *t = (Tensor *)PyType_GenericAlloc(tensor_type, 2 * dimensions);
    if (t == NULL) return NULL;
    t->numbers[0] = 1; /* of a scalar: a vector of one */
    if (!read_numbers(t->numbers, v->shape, count)
        || (has_strides && !read_numbers(t->numbers + dimensions, v->strides, count))) {
        Py_DECREF(t);
        return NULL;
    }
    t->tensor = (lockstep_tensor){
        .data = (void *)(uintptr_t)v->data, .device = {1, 0}, .ndim = (int32_t)dimensions,
        .dtype = {(uint8_t)v->code, (uint8_t)(v->code >> 8), (uint16_t)(v->code >> 16)}, .shape = t->numbers,
        .strides = has_strides ? t->numbers + dimensions : NULL, .byte_offset = 0};
    set(&t->owner, v->owner);
    return (PyObject *)t;
}

static void tensor_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(((Tensor *)self)->owner);
    ((freefunc)(uintptr_t)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int tensor_buffer(PyObject *self, Py_buffer *buffer, int flags) {
    return PyBuffer_FillInfo(buffer, self, &((Tensor *)self)->tensor, sizeof(lockstep_tensor), 0, flags);
}

static PyObject *tensor_address(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromVoidPtr(&((Tensor *)self)->tensor);
}

/* Arrays in place. What is not known here is left to the Python code: `false`, no exception set. */

typedef struct {
    void *data;
    long long code;
    int dimensions;
    bool has_strides;
    int64_t shape[MAX_DIMENSIONS], strides[MAX_DIMENSIONS]; /* in elements */
} Found;

static long long code_of_format(const char *format) {
    if (format == NULL || format[0] == 0 || format[1] != 0) return 0;
    switch (format[0]) {
    case 'e': return 2 | 16 << 8 | 1 << 16;
    case 'f': return 2 | 32 << 8 | 1 << 16;
    case 'd': return 2 | 64 << 8 | 1 << 16;
    case 'i': return 0 | 32 << 8 | 1 << 16;
    case 'l': return 0 | (8 * (int)sizeof(long)) << 8 | 1 << 16;
    case 'q': return 0 | 64 << 8 | 1 << 16;
    case 'L': return sizeof(long) == 8 ? 1 | 64 << 8 | 1 << 16 : 0;
    case 'Q': return 1 | 64 << 8 | 1 << 16;
    case 'B': return 1 | 8 << 8 | 1 << 16;
    case '?': return 6 | 8 << 8 | 1 << 16;
    default: return 0;
    }
}

static bool is_contiguous(const Found *found) {
    int64_t expected = 1;
    bool contiguous = true;
    for (int i = found->dimensions - 1; i >= 0; i--) {
        if (found->shape[i] == 0) return true;
        contiguous = contiguous && (found->shape[i] == 1 || found->strides[i] == expected);
        expected *= found->shape[i];
    }
    return contiguous;
}

static bool read_buffer(Found *found, PyObject *x, bool written) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(x, &buffer, PyBUF_FORMAT | PyBUF_STRIDES)) return false;
    bool known = false;
    found->code = code_of_format(buffer.format);
    if (found->code == 0 || buffer.ndim > MAX_DIMENSIONS || (written && buffer.readonly)) goto done;
    found->data = buffer.buf;
    found->dimensions = buffer.ndim;
    found->has_strides = !PyBuffer_IsContiguous(&buffer, 'C');
    for (int i = 0; i < buffer.ndim; i++) {
        found->shape[i] = buffer.shape[i];
        found->strides[i] = buffer.strides[i] / buffer.itemsize;
        if (found->has_strides && buffer.strides[i] % buffer.itemsize) goto done;
    }
    known = true;
done:
    PyBuffer_Release(&buffer);
    return known;
}

static bool read_dltensor(Found *found, const lockstep_tensor *tensor) {
    if (tensor->device.device_type != 1 || tensor->ndim < 0 || tensor->ndim > MAX_DIMENSIONS) return false;
    found->code = tensor->dtype.code | tensor->dtype.bits << 8 | (long long)tensor->dtype.lanes << 16;
    PyObject *code = PyLong_FromLongLong(found->code);
    int known = code == NULL ? -1 : PySet_Contains(codes, code);
    Py_XDECREF(code);
    if (known != 1) return false;
    found->data = (char *)tensor->data + tensor->byte_offset;
    found->dimensions = tensor->ndim;
    found->has_strides = tensor->strides != NULL && tensor->ndim > 0;
    for (int i = 0; i < tensor->ndim; i++) {
        found->shape[i] = tensor->shape[i];
        found->strides[i] = found->has_strides ? tensor->strides[i] : 0;
    }
    return true;
}

/* What PyTorch's tensors export for this: DLPack's DLPackExchangeAPI, from DLPack 1.2 on. */
typedef struct {
    struct { uint32_t major, minor; } version;
    void *previous;
    void *from_environment, *managed_from_object, *managed_to_object;
    int (*tensor_from_object)(void *object, lockstep_tensor *out);
    void *current_work_stream;
} Exchange;

static const Exchange *torch_exchange;

static bool read_torch(Found *found, PyObject *x) {
    lockstep_tensor tensor;
    if (torch_exchange == NULL || torch_exchange->tensor_from_object(x, &tensor) || !read_dltensor(found, &tensor))
        return false;
    found->has_strides = found->has_strides && !is_contiguous(found);
    return true;
}

/* What stands before the DLTensor in a DLManagedTensorVersioned. */
typedef struct {
    uint32_t major, minor;
    void *manager;
    void (*deleter)(void *);
    uint64_t flags;
    lockstep_tensor tensor;
} Versioned;

/* The capsule is kept, not consumed: it is not renamed, so it frees its tensor itself, with the last View of it. */
static bool read_dlpack(Found *found, PyObject *x, bool written, PyObject **owner) {
    PyObject *device = PyObject_CallMethodObjArgs(x, name_device, NULL);
    long on_cpu = 0;
    if (device != NULL && PyTuple_Check(device) && PyTuple_Size(device) == 2) {
        PyObject *index = PyNumber_Index(PyTuple_GetItem(device, 0));
        on_cpu = index == NULL ? 0 : PyLong_AsLong(index) == 1;
        Py_XDECREF(index);
    }
    Py_XDECREF(device);
    if (!on_cpu) return false;
    PyObject *method = PyObject_GetAttr(x, name_dlpack);
    PyObject *capsule = method == NULL ? NULL : PyObject_Call(method, no_arguments, max_version);
    if (capsule == NULL && method != NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear(); /* a producer from before DLPack 1.0 */
        capsule = PyObject_Call(method, no_arguments, NULL);
    }
    Py_XDECREF(method);
    if (capsule == NULL) return false;
    const lockstep_tensor *tensor = NULL;
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        const Versioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (managed->major == 1 && !(written && managed->flags & 1)) tensor = &managed->tensor;
    } else if (PyCapsule_IsValid(capsule, "dltensor")) {
        tensor = PyCapsule_GetPointer(capsule, "dltensor");
    }
    if (tensor == NULL || !read_dltensor(found, tensor)) {
        Py_DECREF(capsule);
        return false;
    }
    *owner = capsule;
    return true;
}

static bool has_dlpack(PyObject *x) {
    if (torch_tensor == NULL) { /* it may be a tensor of PyTorch, which the Python code tells us of when it meets it */
        PyObject *name = PyUnicode_FromString("torch");
        PyObject *torch = name == NULL ? NULL : PyImport_GetModule(name);
        Py_XDECREF(name);
        Py_XDECREF(torch);
        if (torch != NULL) return false;
    } else if (PyObject_IsInstance(x, torch_tensor)) {
        return false;
    }
    return !PyObject_IsInstance(x, ndarray) && PyObject_HasAttr(x, name_dlpack);
}

static PyObject *numbers_tuple(const int64_t *numbers, int count) {
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLongLong(numbers[i]);
        if (number == NULL) Py_CLEAR(tuple);
        else PyTuple_SetItem(tuple, i, number);
    }
    return tuple;
}

static PyObject *make_view(PyObject *name, const Found *found, PyObject *owner, bool is_torch) {
    View *v = (View *)PyType_GenericAlloc((PyTypeObject *)view_class, 0);
    if (v == NULL) return NULL;
    v->data = (uintptr_t)found->data, v->code = found->code, v->is_torch = is_torch;
    v->shape = numbers_tuple(found->shape, found->dimensions);
    v->strides = found->has_strides ? numbers_tuple(found->strides, found->dimensions) : Py_NewRef(Py_None);
    set(&v->name, name), set(&v->owner, owner);
    if (v->shape == NULL || v->strides == NULL) Py_CLEAR(v);
    return (PyObject *)v;
}

static PyObject *view(PyObject *module, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords) {
    (void)module;
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    if (view_class == NULL || count != 2 || named > 1
        || (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(keywords, 0), "written") != 0))
        return PyErr_Format(PyExc_TypeError, "view(x, name, *, written=False)");
    PyObject *x = arguments[0], *name = arguments[1];
    int written = named ? PyObject_IsTrue(arguments[2]) : 0;
    if (written < 0) return NULL;
    PyObject *type = (PyObject *)Py_TYPE(x), *owner = x;
    bool is_torch = torch_tensor != NULL && (type == torch_tensor || type == torch_parameter), known;
    Found found;
    if (type == ndarray) known = read_buffer(&found, x, written);
    else if (is_torch) known = read_torch(&found, x);
    else known = has_dlpack(x) && read_dlpack(&found, x, written, &owner);
    if (known) {
        PyObject *made = make_view(name, &found, owner, is_torch);
        if (owner != x) Py_DECREF(owner);
        return made;
    }
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception)) return NULL; /* an interrupt */
        PyErr_Clear();
    }
    return PyObject_CallFunctionObjArgs(python_view, x, name, written ? Py_True : Py_False, NULL);
}

/* Functions of the library. */

typedef union {
    void *p;
    int64_t i;
    double d;
} Value;

typedef void (*Address)(void);

typedef struct {
    const char *name, *arguments; /* a letter each: p pointer, i 32-bit and l 64-bit integer, d double */
    bool has_status;
    int32_t (*call)(Address, const Value *);
} Entry;

#include "functions.h"

typedef struct {
    const Entry *entry;
    Address address;
    PyMethodDef definition;
    int count;
    PyObject *declared[MAX_ARGUMENTS]; /* ctypes types */
    PyObject *pointee[MAX_ARGUMENTS];  /* T of POINTER(T), else NULL */
    bool takes_tensor[MAX_ARGUMENTS];
} Function;

static const char function_name[] = "lockstep._fast.Function";

static bool memory_of(PyObject *x, void **out) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(x, &buffer, PyBUF_SIMPLE)) return false;
    *out = buffer.buf; /* of a ctypes object, which keeps it while it lives */
    PyBuffer_Release(&buffer);
    return true;
}

static bool convert_pointer(const Function *f, int index, PyObject *x, Value *value) {
    PyObject *type = (PyObject *)Py_TYPE(x), *pointee = f->pointee[index];
    value->p = NULL;
    if (x == Py_None) return true;
    if (f->takes_tensor[index] && type == (PyObject *)tensor_type) {
        value->p = &((Tensor *)x)->tensor;
        return true;
    }
    if (type == pointee) return memory_of(x, &value->p);
    if (pointee == NULL && type == void_pointer) {
        void *place;
        if (!memory_of(x, &place)) return false;
        value->p = *(void **)place;
        return true;
    }
    /* Other kinds are rare: ctypes converts them, or refuses. */
    PyObject *address = PyObject_CallFunctionObjArgs(python_address, f->declared[index], x, NULL);
    if (address == NULL) return false;
    value->p = PyLong_AsVoidPtr(address);
    Py_DECREF(address);
    return value->p != NULL || !PyErr_Occurred();
}

static bool convert(const Function *f, int index, PyObject *x, Value *value) {
    switch (f->entry->arguments[index]) {
    case 'p': return convert_pointer(f, index, x, value);
    case 'd':
        value->d = PyFloat_AsDouble(x);
        return value->d != -1.0 || !PyErr_Occurred();
    default: { /* as ctypes does, higher bits are cut off */
        PyObject *number = PyNumber_Index(x);
        if (number == NULL) return false;
        value->i = (int64_t)PyLong_AsUnsignedLongLongMask(number);
        Py_DECREF(number);
        return true;
    }
    }
}

static PyObject *call(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    const Function *f = PyCapsule_GetPointer(self, function_name);
    if (f == NULL) return NULL;
    if (count != f->count)
        return PyErr_Format(PyExc_TypeError, "%s takes %d arguments, not %zd", f->entry->name, f->count, count);
    Value values[MAX_ARGUMENTS];
    for (int i = 0; i < f->count; i++)
        if (!convert(f, i, arguments[i], &values[i])) return NULL;
    int32_t status;
    Py_BEGIN_ALLOW_THREADS
    status = f->entry->call(f->address, values);
    Py_END_ALLOW_THREADS
    return f->entry->has_status ? PyLong_FromLong(status) : Py_NewRef(Py_None);
}

static void function_free(PyObject *capsule) {
    Function *f = PyCapsule_GetPointer(capsule, function_name);
    for (int i = 0; i < f->count; i++) Py_XDECREF(f->declared[i]), Py_XDECREF(f->pointee[i]);
    PyMem_Free(f);
}

/* function(name, address, argtypes, tensor_struct): None for a function that was not in the header at build time, or was
   another: ctypes calls those. */
static PyObject *function(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name, *letters;
    unsigned long long address;
    PyObject *types, *tensor_struct;
    if (!PyArg_ParseTuple(arguments, "sKsO!O", &name, &address, &letters, &PyTuple_Type, &types, &tensor_struct)) return NULL;
    const Entry *entry = NULL;
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (strcmp(entries[i].name, name) == 0 && strcmp(entries[i].arguments, letters) == 0) entry = &entries[i];
    Py_ssize_t count = PyTuple_Size(types);
    if (entry == NULL || (size_t)count != strlen(letters) || count > MAX_ARGUMENTS) Py_RETURN_NONE;
    Function *f = PyMem_Calloc(1, sizeof *f);
    if (f == NULL) return PyErr_NoMemory();
    f->entry = entry, f->address = (Address)(uintptr_t)address, f->count = (int)count;
    f->definition = (PyMethodDef){entry->name, (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL};
    for (int i = 0; i < f->count; i++) {
        f->declared[i] = Py_NewRef(PyTuple_GetItem(types, i));
        if (entry->arguments[i] != 'p') continue;
        f->pointee[i] = PyObject_GetAttrString(f->declared[i], "_type_"); /* a letter for those that are no pointers */
        if (f->pointee[i] == NULL || PyUnicode_Check(f->pointee[i])) {
            Py_CLEAR(f->pointee[i]);
            PyErr_Clear();
        }
        f->takes_tensor[i] = f->pointee[i] == tensor_struct;
    }
    PyObject *capsule = PyCapsule_New(f, function_name, function_free);
    if (capsule == NULL) {
        PyMem_Free(f);
        return NULL;
    }
    PyObject *made = PyCFunction_NewEx(&f->definition, capsule, NULL);
    Py_DECREF(capsule);
    return made;
}

/* The module. */

static PyObject *use(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *view_type, *known, *other, *address, *pointer, *array;
    if (!PyArg_ParseTuple(arguments, "OOOOOO", &view_type, &known, &other, &address, &pointer, &array)) return NULL;
    set(&view_class, view_type), set(&codes, known), set(&python_view, other), set(&python_address, address);
    set(&void_pointer, pointer), set(&ndarray, array);
    Py_RETURN_NONE;
}

static PyObject *use_torch(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *tensor, *parameter, *capsule;
    if (!PyArg_ParseTuple(arguments, "OOO", &tensor, &parameter, &capsule)) return NULL;
    set(&torch_tensor, tensor), set(&torch_parameter, parameter);
    if (PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
        const Exchange *found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
        if (found->version.major == 1 && found->tensor_from_object != NULL) torch_exchange = found;
    }
    Py_RETURN_NONE;
}

#define SLOT(function) ((void *)(uintptr_t)(function))

static PyMemberDef view_members[] = {
    {"name", T_OBJECT_EX, offsetof(View, name), READONLY, NULL},
    {"data", T_ULONGLONG, offsetof(View, data), READONLY, NULL},
    {"code", T_LONGLONG, offsetof(View, code), READONLY, NULL},
    {"shape", T_OBJECT_EX, offsetof(View, shape), READONLY, NULL},
    {"strides", T_OBJECT_EX, offsetof(View, strides), READONLY, NULL},
    {"owner", T_OBJECT_EX, offsetof(View, owner), READONLY, NULL},
    {"is_torch", T_BOOL, offsetof(View, is_torch), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyMethodDef view_methods[] = {{"tensor", view_tensor, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static PyType_Slot view_slots[] = {
    {Py_tp_init, SLOT(view_init)}, {Py_tp_dealloc, SLOT(view_dealloc)}, {Py_tp_members, view_members}, {Py_tp_methods, view_methods},
    {0, NULL},
};
static PyType_Spec view_spec = {
    "lockstep._fast.View", sizeof(View), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, view_slots,
};

static PyGetSetDef tensor_attributes[] = {{"address", tensor_address, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot tensor_slots[] = {
    {Py_tp_dealloc, SLOT(tensor_dealloc)}, {Py_tp_getset, tensor_attributes}, {Py_bf_getbuffer, SLOT(tensor_buffer)}, {0, NULL},
};
static PyType_Spec tensor_spec = {
    "lockstep._fast.Tensor", sizeof(Tensor), sizeof(int64_t),
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, tensor_slots,
};

static PyMethodDef methods[] = {
    {"view", (PyCFunction)(void (*)(void))view, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"function", function, METH_VARARGS, NULL},
    {"use", use, METH_VARARGS, NULL},
    {"use_torch", use_torch, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
    PyObject *module = PyModule_Create(&definition), *view_base = PyType_FromSpec(&view_spec);
    tensor_type = (PyTypeObject *)PyType_FromSpec(&tensor_spec);
    name_dlpack = PyUnicode_InternFromString("__dlpack__");
    name_device = PyUnicode_InternFromString("__dlpack_device__");
    no_arguments = PyTuple_New(0);
    max_version = Py_BuildValue("{s(ii)}", "max_version", 1, 0);
    if (module == NULL || view_base == NULL || tensor_type == NULL || name_dlpack == NULL || name_device == NULL
        || no_arguments == NULL || max_version == NULL || PyModule_AddObjectRef(module, "View", view_base)
        || PyModule_AddObjectRef(module, "Tensor", (PyObject *)tensor_type))
        Py_CLEAR(module);
    Py_XDECREF(view_base);
    return module;
}
