#include "scorer/quantise.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lookalike::detail {

QuantisedLayer quantise(std::span<const double> weights, std::size_t inputs, std::size_t outputs,
                        std::span<const double> highest, bool both_signs) {
  constexpr double kSum = std::numeric_limits<std::int32_t>::max();
  QuantisedLayer layer{std::vector<std::int16_t>(inputs * outputs), std::vector<double>(outputs, 1),
                       std::vector<double>(outputs, 0)};
  double rounding = 0;  // of all weights, half a unit each
  for (const double most : highest) {
    rounding += most / 2;
  }
  for (std::size_t output = 0; output < outputs; ++output) {
    double above = 0;
    double below = 0;
    double largest = 0;
    for (std::size_t input = 0; input < inputs; ++input) {
      const double weight = weights[input * outputs + output];
      (weight > 0 ? above : below) += std::abs(weight) * highest[input];
      largest = std::max(largest, std::abs(weight));
    }
    const double reach = both_signs ? above + below : std::max(above, below);
    const double unit = std::max(reach / (kSum - rounding), largest / kMost);
    layer.highest[output] = both_signs ? reach : above;
    if (unit == 0) {
      continue;
    }
    layer.scale[output] = unit;
    for (std::size_t input = 0; input < inputs; ++input) {
      layer.weights[(input / 2 * outputs + output) * 2 + input % 2] =
          static_cast<std::int16_t>(std::lround(weights[input * outputs + output] / unit));
    }
  }
  return layer;
}

}  // namespace lookalike::detail
