#include "lookalike/cpu.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings.h"

namespace lookalike::bindings {
namespace {

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const SimdLevel level : supported_simd_levels()) {
    names.emplace_back(name(level));
  }
  return names;
}

void set_simd_level(const std::optional<std::string>& wanted) {
  if (!wanted) {
    reset_simd_level();
    return;
  }
  const auto level = find_simd_level(*wanted);
  if (!level) {
    throw InvalidInput("level", "there is no level '" + *wanted + "': simd_levels() lists what this machine can run");
  }
  force_simd_level(*level);
}

}  // namespace

void bind_cpu(py::module_& module) {
  module.def("simd_level", [] { return std::string(name(simd_level())); });
  module.def("simd_levels", &simd_levels);
  module.def("set_simd_level", &set_simd_level, py::arg("level"));
}

}  // namespace lookalike::bindings
