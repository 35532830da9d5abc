// Time and memory of one call.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace lookalike::bench {

using Clock = std::chrono::steady_clock;

[[nodiscard]] inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What a call took.
struct Cost {
  double seconds = 0;
  /// Resident memory at its highest beyond what there was before; empty where the system does not tell (Linux does).
  std::optional<std::int64_t> extra_bytes = std::nullopt;
};

/// Measures from its construction on.
///
/// Freed memory that the allocator kept is given back to the system first: else what the call takes out of it would
/// not show. So a call pays for its page faults, as the first one in a process does.
class Meter {
 public:
  Meter();
  [[nodiscard]] Cost stop() const;

 private:
  std::optional<std::int64_t> resident_before_;
  Clock::time_point start_;
};

}  // namespace lookalike::bench
