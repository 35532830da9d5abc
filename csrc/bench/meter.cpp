#include "bench/meter.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <fstream>
#include <string>

namespace lookalike::bench {
namespace {

/// The field of /proc/self/status, such as "VmRSS:", in bytes.
std::optional<std::int64_t> status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == field) {
      std::int64_t kibibytes = 0;
      status >> kibibytes;
      return kibibytes * 1024;
    }
  }
  return std::nullopt;
}

/// Lets VmHWM start again at what is resident now; false where that cannot be done.
bool reset_high_water() {
  std::ofstream clear("/proc/self/clear_refs");
  clear << "5" << std::flush;
  return clear.good();
}

}  // namespace

Meter::Meter() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
  if (reset_high_water()) {
    resident_before_ = status_bytes("VmRSS:");
  }
  start_ = Clock::now();
}

Cost Meter::stop() const {
  Cost cost{seconds_since(start_)};
  const auto highest = status_bytes("VmHWM:");
  if (resident_before_ && highest) {
    cost.extra_bytes = *highest - *resident_before_;
  }
  return cost;
}

}  // namespace lookalike::bench
