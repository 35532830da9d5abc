// The command line of bench_topk.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/scores.h"

namespace lookalike::bench {

struct BadOption : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct Options {
  std::uint64_t rows = 1'000'000'000;
  std::vector<unsigned> threads;  // 1 and as many as the machine runs at once
  std::vector<std::uint64_t> k = {1'000, 100'000, 1'000'000, 10'000'000};
  std::vector<Order> orders = all_orders();
  unsigned repeat = 5;
  std::uint64_t baseline_rows = 200'000'000;
  std::string only;  // part of the names of the cases to run
  bool help = false;
};

extern const char* const kUsage;

/// `arguments` without the program's name. Throws BadOption, whose message names the flag and what it wants.
[[nodiscard]] Options parse_options(const std::vector<std::string>& arguments);

}  // namespace lookalike::bench
