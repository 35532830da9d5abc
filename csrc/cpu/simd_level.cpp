#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <string>

#include "cpu/dispatch.h"
#include "lookalike/cpu.h"
#include "lookalike/error.h"

namespace lookalike {
namespace {

constexpr std::array kLevels{SimdLevel::kScalar, SimdLevel::kAvx2, SimdLevel::kAvx512, SimdLevel::kAvx512Vnni,
                             SimdLevel::kNeon};
static_assert(kLevels.size() == detail::kSimdLevels);

constexpr const char* kVariable = "LOOKALIKE_SIMD";

bool supported(SimdLevel level) noexcept {
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
                    __builtin_cpu_supports("bmi") != 0 && __builtin_cpu_supports("popcnt") != 0;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0;
#endif
  switch (level) {
    case SimdLevel::kScalar:
      return true;
#if defined(__x86_64__)
    case SimdLevel::kAvx2:
      return avx2;
    case SimdLevel::kAvx512:
      return avx512;
    case SimdLevel::kAvx512Vnni:
      return avx512 && __builtin_cpu_supports("avx512vnni") != 0;
#elif defined(__aarch64__)
    case SimdLevel::kNeon:
      return true;
#endif
    default:
      return false;
  }
}

SimdLevel from_environment() {
  const char* variable = std::getenv(kVariable);
  const std::string wanted = variable == nullptr ? "" : variable;
  const auto levels = supported_simd_levels();
  if (wanted.empty()) {
    return levels.back();
  }
  const auto level = find_simd_level(wanted);
  if (level && supported(*level)) {
    return *level;
  }
  std::string message = std::string(kVariable) + " is '" + wanted + "': unset it, or give it what this machine can run";
  for (const SimdLevel possible : levels) {
    message += (possible == levels.front() ? ": " : ", ") + std::string(name(possible));
  }
  throw InvalidInput(kVariable, message);
}

constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

}  // namespace

std::vector<SimdLevel> supported_simd_levels() {
  std::vector<SimdLevel> levels;
  std::copy_if(kLevels.begin(), kLevels.end(), std::back_inserter(levels), supported);
  return levels;
}

SimdLevel simd_level() {
  const int level = forced.load(std::memory_order_relaxed);
  if (level != kNotForced) {
    return static_cast<SimdLevel>(level);
  }
  static const SimdLevel chosen = from_environment();  // one that throws is called again next time
  return chosen;
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
    case SimdLevel::kAvx512Vnni:
      return "avx512vnni";
    case SimdLevel::kNeon:
      return "neon";
  }
  return "unknown";
}

std::optional<SimdLevel> find_simd_level(std::string_view wanted) noexcept {
  const auto* found =
      std::find_if(kLevels.begin(), kLevels.end(), [wanted](SimdLevel level) { return name(level) == wanted; });
  return found == kLevels.end() ? std::nullopt : std::optional(*found);
}

}  // namespace lookalike
