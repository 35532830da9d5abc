// What comes after the first layer. Apart from pack.cpp, which knows about fields.
#include <algorithm>
#include <cmath>
#include <span>

#include "scorer/pack.h"
#include "scorer/quantise.h"

namespace lookalike::detail {
namespace {

/// `[rows, columns]` of floats as `[padded rows, padded columns]`, each row times its factor.
std::vector<double> spread(std::span<const float> weights, std::size_t rows, std::size_t columns,
                           std::size_t padded_rows, std::size_t padded_columns, std::span<const double> factors) {
  std::vector<double> out(padded_rows * padded_columns, 0);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < columns; ++j) {
      out[i * padded_columns + j] = weights[i * columns + j] * factors[i];
    }
  }
  return out;
}

std::vector<float> to_floats(std::span<const double> values) { return {values.begin(), values.end()}; }

std::vector<float> extended(std::span<const float> values, std::size_t size) {
  std::vector<float> out(values.begin(), values.end());
  out.resize(size, 0);
  return out;
}

}  // namespace

void Packed::pack_experts(const ScorerModel& model) {
  const std::span<const double> step = step_;
  const std::span<const double> highest = highest_;
  const auto gate_layer = [&](std::size_t column, std::span<const float> weight, std::span<const float> bias) {
    const std::size_t lanes = padded(bias.size(), kLanes);
    const std::size_t inputs = kernel.gate_columns;
    QuantisedLayer layer =
        quantise(spread(weight, model.gate_hidden, bias.size(), inputs, lanes, step.subspan(column, inputs)), inputs,
                 lanes, highest.subspan(column, inputs), false);
    return PackedLayer{static_cast<std::uint32_t>(inputs), static_cast<std::uint32_t>(lanes), keep(layer.weights),
                       keep(to_floats(layer.scale)), keep(extended(bias, lanes))};
  };
  const std::size_t gates = std::size_t{model.num_experts} * kernel.expert_columns;
  kernel.expert_gate = gate_layer(gates, model.expert_gate_weight, model.expert_gate_bias);
  kernel.critic_gate = gate_layer(gates + kernel.gate_columns, model.critic_gate_weight, model.critic_gate_bias);

  kernel.num_layers = static_cast<std::uint32_t>(model.hidden.size() - 1);
  kernel.mixed = static_cast<std::uint32_t>(padded(model.hidden.back(), kernel.num_layers == 0 ? kColumns : kLanes));
  kernel.first_scale = keep(to_floats(step.first(gates)));
  std::vector<PackedLayer> layers(kernel.num_layers * model.num_experts);
  for (std::size_t expert = 0; expert < model.num_experts; ++expert) {
    const std::size_t begin = expert * kernel.expert_columns;
    std::vector<double> worth(step.begin() + static_cast<std::ptrdiff_t>(begin),
                              step.begin() + static_cast<std::ptrdiff_t>(begin + kernel.expert_columns));
    std::vector<double> most(highest.begin() + static_cast<std::ptrdiff_t>(begin),
                             highest.begin() + static_cast<std::ptrdiff_t>(begin + kernel.expert_columns));
    for (std::size_t i = 0; i < kernel.num_layers; ++i) {
      const std::size_t rows = model.hidden[i];
      const std::size_t columns = model.hidden[i + 1];
      const bool last = i + 1 == kernel.num_layers;
      const std::size_t inputs = most.size();
      const std::size_t outputs = padded(columns, last ? kLanes : kColumns);
      const auto bias = model.deeper_biases[i].subspan(expert * columns, columns);
      QuantisedLayer layer = quantise(spread(model.deeper_weights[i].subspan(expert * rows * columns, rows * columns),
                                             rows, columns, inputs, outputs, worth),
                                      inputs, outputs, most, false);
      std::vector<float> scale = to_floats(layer.scale);
      std::vector<float> shift = extended(bias, outputs);
      worth.assign(outputs, 1);
      most.assign(outputs, 0);
      for (std::size_t j = 0; j < columns && !last; ++j) {
        // Between layers numbers have 16 bits, of which the largest there can be uses all.
        const double largest = std::max(0.0, layer.highest[j] + bias[j]) * (1 + 1e-6);
        worth[j] = largest > 0 ? largest / (kMost - 1) : 1;
        most[j] = largest > 0 ? kMost : 0;
        scale[j] = static_cast<float>(layer.scale[j] / worth[j]);
        shift[j] = static_cast<float>(bias[j] / worth[j]);
      }
      layers[i * model.num_experts + expert] = {static_cast<std::uint32_t>(inputs), static_cast<std::uint32_t>(outputs),
                                                keep(layer.weights), keep(scale), keep(shift)};
    }
  }
  kernel.layers = keep(layers);
}

void Packed::pack_critics(const ScorerModel& model) {
  std::vector<float> weights(std::size_t{model.num_critics} * kernel.mixed, 0);
  for (std::size_t i = 0; i < model.hidden.back(); ++i) {
    for (std::size_t critic = 0; critic < model.num_critics; ++critic) {
      weights[critic * kernel.mixed + i] = model.critics_weight[i * model.num_critics + critic] * model.expert_scale;
    }
  }
  kernel.critics_weight = keep(weights);
  kernel.critics_bias = keep(extended(model.critics_bias, model.num_critics));
  kernel.critic_scale = model.critic_scale;
}

}  // namespace lookalike::detail
