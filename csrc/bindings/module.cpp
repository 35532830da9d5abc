// lookalike._core: the C++ core as Python sees it. Each function validates, releases the GIL, calls, and wraps.
#include "bindings.h"
#include "lookalike/version.h"

namespace lookalike::bindings {
namespace {

/// Raises lookalike.errors.<name>(message, **keywords).
void raise(const char* name, const char* message, const py::dict& keywords) {
  const py::object type = py::module_::import("lookalike.errors").attr(name);
  PyErr_SetObject(type.ptr(), type(message, **keywords).ptr());
}

void translate(std::exception_ptr exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const InvalidInput& error) {
    raise("InvalidInput", error.what(), py::dict(py::arg("field") = error.field()));
  } catch (const DataCorrupted& error) {
    raise("DataCorrupted", error.what(), py::dict(py::arg("field") = error.field()));
  } catch (const std::bad_alloc&) {
    raise("ResourceExhausted", "out of memory: ask for less at a time, or run on a machine with more", py::dict());
  }
}

}  // namespace
}  // namespace lookalike::bindings

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core. Use it through lookalike.retrieval.topk and lookalike.scoring.native.";
  module.attr("__version__") = LOOKALIKE_VERSION;
  pybind11::register_local_exception_translator(lookalike::bindings::translate);
  lookalike::bindings::bind_cpu(module);
  lookalike::bindings::bind_topk(module);
  lookalike::bindings::bind_scorer(module);
}
