// Which instruction set the kernels use. Chosen once, at first use, for the machine the program runs on.
//
// Results never depend on it. Forcing a level is for tests and measurements.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace lookalike {

enum class SimdLevel : std::uint8_t {
  kScalar = 0,  // any processor
  kAvx2 = 1,    // x86-64 with AVX2, BMI and POPCNT (2013 on)
  kAvx512 = 2,  // and AVX-512 F
};

/// The levels this machine can run, ascending; always holds kScalar.
[[nodiscard]] std::vector<SimdLevel> supported_simd_levels();

/// The level in force: the highest supported one unless another was forced.
[[nodiscard]] SimdLevel simd_level() noexcept;

/// Forces a level in the whole process, for calls that start afterwards. Throws InvalidInput if this machine lacks it.
void force_simd_level(SimdLevel level);

/// Undoes force_simd_level.
void reset_simd_level() noexcept;

/// "scalar", "avx2" or "avx512".
[[nodiscard]] std::string_view name(SimdLevel level) noexcept;

}  // namespace lookalike
