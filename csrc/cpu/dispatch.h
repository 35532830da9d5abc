// The one place where a kernel is chosen for the machine. Each kernel has one translation unit per SimdLevel.
#pragma once

#include <cstddef>

#include "lookalike/cpu.h"

namespace lookalike::detail {

constexpr std::size_t kSimdLevels = static_cast<std::size_t>(SimdLevel::kNeon) + 1;

/// The variant for the level in force; throws as simd_level does. `variants` are in the order of SimdLevel, null where
/// the level is another architecture's: such a level is never in force.
template <class Function, std::size_t kCount>
[[nodiscard]] Function choose(const Function (&variants)[kCount]) {
  static_assert(kCount == kSimdLevels, "one variant or null for each SimdLevel");
  return variants[static_cast<std::size_t>(simd_level())];
}

}  // namespace lookalike::detail
