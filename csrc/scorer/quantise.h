// Layers of real weights as layers of 16-bit integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lookalike::detail {

/// The integers a weight or an input may be: not the lowest, whose product with itself overflows a sum of two.
constexpr double kMost = 32767;

struct QuantisedLayer {
  std::vector<std::int16_t> weights;  // [inputs / 2, outputs, 2]
  std::vector<double> scale;          // [outputs]: what an output's 1 is worth
  std::vector<double> highest;        // [outputs]: what the sum can be at most, in its real value
};

/// Weights `[inputs, outputs]` in the outputs' own unit, for inputs that are integers 0 .. highest[i] (or -highest[i]
/// .. highest[i] if `both_signs`). No sum can overflow 32 bits, and each uses them as far as that allows.
[[nodiscard]] QuantisedLayer quantise(std::span<const double> weights, std::size_t inputs, std::size_t outputs,
                                      std::span<const double> highest, bool both_signs);

}  // namespace lookalike::detail
