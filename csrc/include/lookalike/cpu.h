// Which instruction set the kernels use. Chosen once, at first use, for the machine the program runs on.
//
// No selection ever depends on it, and scores by rounding only. For tests and measurements a level can be forced, by
// force_simd_level or, in a program that cannot be changed, by the environment variable LOOKALIKE_SIMD (a name that
// name() gives; empty is as unset).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace lookalike {

enum class SimdLevel : std::uint8_t {
  kScalar = 0,      // any processor
  kAvx2 = 1,        // x86-64 with AVX2, FMA, BMI and POPCNT (2013 on)
  kAvx512 = 2,      // and AVX-512 F and BW
  kAvx512Vnni = 3,  // and AVX-512 VNNI (2019 on)
  kNeon = 4,        // any AArch64
};

/// The levels this machine can run, ascending; always holds kScalar.
[[nodiscard]] std::vector<SimdLevel> supported_simd_levels();

/// The level in force: the one forced, else that of LOOKALIKE_SIMD, else the highest supported one. Everything that
/// runs a kernel asks for it. Throws InvalidInput, at every call, if LOOKALIKE_SIMD counts and is no level of this
/// machine; the variable is not read again once it was good.
[[nodiscard]] SimdLevel simd_level();

/// Forces a level in the whole process, for calls that start afterwards. Throws InvalidInput if this machine lacks it.
void force_simd_level(SimdLevel level);

/// Undoes force_simd_level.
void reset_simd_level() noexcept;

/// "scalar", "avx2", "avx512", "avx512vnni" or "neon".
[[nodiscard]] std::string_view name(SimdLevel level) noexcept;

/// The level of this name, whether the machine has it or not; nothing if there is none.
[[nodiscard]] std::optional<SimdLevel> find_simd_level(std::string_view name) noexcept;

}  // namespace lookalike
