// The one place where a kernel is chosen for the machine. Each kernel has one translation unit per SimdLevel.
#pragma once

#include <cstddef>

#include "lookalike/cpu.h"

namespace lookalike::detail {

/// The variant for the level in force. `variants` are in the order of SimdLevel, as many as were compiled for this
/// architecture; a level can only be in force if its variant was.
template <class Function, std::size_t kCount>
[[nodiscard]] Function choose(const Function (&variants)[kCount]) noexcept {
  return variants[static_cast<std::size_t>(simd_level())];
}

}  // namespace lookalike::detail
