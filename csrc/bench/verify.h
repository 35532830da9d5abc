// A fast wrong answer is no result: every selection measured is checked.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>

#include "lookalike/topk.h"

namespace lookalike::bench {

struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Verifier {
 public:
  /// Checks a sorted selection of the k best. The first of each `problem` is proved to be exact, by its order and one
  /// pass over the scores; those after it must have the same rows. Throws WrongResult.
  void check(const std::string& problem, const Selection& selection, std::span<const float> scores, std::uint64_t k,
             std::span<const std::uint8_t> skip, unsigned threads);

  /// Of the rows, in their order; equal for equal selections.
  [[nodiscard]] static std::uint64_t checksum(const Selection& selection);

 private:
  std::map<std::string, std::uint64_t> checksums_;
};

}  // namespace lookalike::bench
