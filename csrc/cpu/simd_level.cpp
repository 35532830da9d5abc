#include <algorithm>
#include <array>
#include <atomic>
#include <string>

#include "lookalike/cpu.h"
#include "lookalike/error.h"

namespace lookalike {
namespace {

constexpr std::array kLevels{SimdLevel::kScalar, SimdLevel::kAvx2, SimdLevel::kAvx512};

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool supported(SimdLevel level) noexcept {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("bmi") != 0 &&
                    __builtin_cpu_supports("popcnt") != 0;
  switch (level) {
    case SimdLevel::kScalar:
      return true;
    case SimdLevel::kAvx2:
      return avx2;
    case SimdLevel::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") != 0;
  }
  return false;
#else
  return level == SimdLevel::kScalar;
#endif
}

SimdLevel highest() noexcept {
  static const SimdLevel level = *std::find_if(kLevels.rbegin(), kLevels.rend(), supported);
  return level;
}

constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

}  // namespace

std::vector<SimdLevel> supported_simd_levels() {
  std::vector<SimdLevel> levels;
  std::copy_if(kLevels.begin(), kLevels.end(), std::back_inserter(levels), supported);
  return levels;
}

SimdLevel simd_level() noexcept {
  const int level = forced.load(std::memory_order_relaxed);
  return level == kNotForced ? highest() : static_cast<SimdLevel>(level);
}

void force_simd_level(SimdLevel level) {
  if (!supported(level)) {
    throw InvalidInput(
        "level", "this machine cannot run " + std::string(name(level)) + "; supported_simd_levels() lists what it can");
  }
  forced.store(static_cast<int>(level), std::memory_order_relaxed);
}

void reset_simd_level() noexcept { forced.store(kNotForced, std::memory_order_relaxed); }

std::string_view name(SimdLevel level) noexcept {
  switch (level) {
    case SimdLevel::kScalar:
      return "scalar";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace lookalike
