// What the files of the module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <functional>
#include <span>
#include <string>
#include <utility>

#include "lookalike/buffer.h"
#include "lookalike/error.h"
#include "lookalike/topk.h"

namespace lookalike::bindings {

namespace py = pybind11;

void bind_cpu(py::module_& module);
void bind_scorer(py::module_& module);
void bind_topk(py::module_& module);

/// A TopK and what keeps its bitmap alive.
struct PyTopK {
  py::object skip;
  TopK top;
};

/// Lets Ctrl-C abandon long work, where Python would hear of it: to be called without the GIL, now and then. Empty on
/// other threads than Python's main one, which alone runs signal handlers.
std::function<void()> signal_poll();

/// The elements of a one-dimensional, C-contiguous array of exactly this type; never a copy. Throws InvalidInput that
/// names the fix. `dtype` is the type's name in numpy.
template <class T>
std::span<const T> elements(const py::object& object, const std::string& field, const std::string& dtype) {
  if (!py::isinstance<py::array>(object)) {
    throw InvalidInput(field, field + " must be a numpy array, not " + Py_TYPE(object.ptr())->tp_name +
                                  ": try np.asarray(" + field + ", np." + dtype + ")");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw InvalidInput(field, field + " are " + std::string(py::str(array.dtype())) + ", not " + dtype + ": try " +
                                  field + ".astype(np." + dtype + ")");
  }
  if (array.ndim() != 1) {
    throw InvalidInput(field, field + " have " + std::to_string(array.ndim()) +
                                  " dimensions and must have one: try np.ravel(" + field + ")");
  }
  constexpr int kNeeded = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kNeeded) != kNeeded) {
    throw InvalidInput(field, field + " are not contiguous and aligned: try np.ascontiguousarray(" + field +
                                  "), or np.require(" + field + ", requirements=\"CA\")");
  }
  return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

/// The buffer as an array that owns it; not copied.
template <class T>
py::array_t<T> to_array(Buffer<T>&& values) {
  auto owned = std::make_unique<Buffer<T>>(std::move(values));
  const py::capsule owner(owned.get(), [](void* buffer) { delete static_cast<Buffer<T>*>(buffer); });
  const Buffer<T>* buffer = owned.release();
  return py::array_t<T>(static_cast<py::ssize_t>(buffer->size()), buffer->data(), owner);
}

}  // namespace lookalike::bindings
