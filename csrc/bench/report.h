// What comes out: a JSON object a line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bench/cases.h"

namespace lookalike::bench {

struct Result {
  Case measured;
  // Seconds; the i-th of each were taken one after another.
  std::vector<double> scan;
  std::vector<double> ours;
  std::vector<double> reference = {};  // empty without a reference
  std::optional<std::int64_t> extra_bytes = std::nullopt;
  std::uint64_t selected = 0;
  std::uint64_t checksum = 0;
  std::optional<std::uint64_t> saved_bytes = std::nullopt;
  std::vector<double> distribution = {};  // of the call distribution(); empty without
};

[[nodiscard]] double median(std::vector<double> values);

[[nodiscard]] std::string to_json(const Result& result);

/// Of compiler, machine and memory, so that figures can be told apart.
[[nodiscard]] std::string environment_json(const Options& options, bool huge_pages_advised);

}  // namespace lookalike::bench
