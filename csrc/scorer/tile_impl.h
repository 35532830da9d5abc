// The network over a tile of users, but for its vector operations. Included once by each instruction set's translation
// unit, which may share no code with another: everything is in the unnamed namespace and calls no library function.
//
// `Vector` has a count of 32-bit lanes, kLanes, types I and F of so many int32 (or twice as many int16) and float32,
// how many users (kUsers) by vectors of outputs (kWide) have their sums in registers together, and static functions:
//   load, zero, set (both types), store, pair (a pair of int16 in all lanes)
//   add16 (saturating), max16, dot (sum of two products of int16, added to int32)
//   to_float, to_int (rounding to even), pack16 (saturating, to memory)
//   add, sub, mul, div, fma, max, min, round, exp2i (2 to the power of a whole number, at least -126), gather
#pragma once

#include "scorer/tile.h"

namespace lookalike::detail {
namespace {

// Where a loop over an array is to be unrolled, the array is to be registers, which GCC must be told.

/// kUsers users' sums over pairs of inputs for kWide vectors of outputs, handed to done(user, vector, sum).
template <class Vector, std::size_t kUsers, std::size_t kWide, class Done>
inline void multiply(const std::int16_t* inputs, std::size_t stride, const PackedLayer& layer, std::size_t first_output,
                     std::size_t pairs, Done done) noexcept {
  typename Vector::I sums[kUsers][kWide];
#pragma GCC unroll 8
  for (auto& of_user : sums) {
#pragma GCC unroll 8
    for (auto& sum : of_user) {
      sum = Vector::zero_i();
    }
  }
  const std::int16_t* weights = layer.weights + 2 * first_output;
  for (std::size_t pair = 0; pair < pairs; ++pair, weights += 2 * layer.outputs) {
    typename Vector::I row[kWide];
#pragma GCC unroll 8
    for (std::size_t vector = 0; vector < kWide; ++vector) {
      row[vector] = Vector::load_i(weights + 2 * Vector::kLanes * vector);
    }
#pragma GCC unroll 8
    for (std::size_t user = 0; user < kUsers; ++user) {
      const auto input = Vector::pair(inputs + user * stride + 2 * pair);
#pragma GCC unroll 8
      for (std::size_t vector = 0; vector < kWide; ++vector) {
        sums[user][vector] = Vector::dot(sums[user][vector], row[vector], input);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t user = 0; user < kUsers; ++user) {
#pragma GCC unroll 8
    for (std::size_t vector = 0; vector < kWide; ++vector) {
      done(user, vector, sums[user][vector]);
    }
  }
}

/// A layer for all users of a tile: done(user, output, scale * sum + bias) for each vector of outputs.
template <class Vector, class Done>
inline void apply(const PackedLayer& layer, const std::int16_t* inputs, std::size_t stride, Done done) noexcept {
  constexpr std::size_t kUsers = Vector::kUsers;
  const std::size_t pairs = layer.inputs / 2;
  const auto chunk = [&]<std::size_t kWide>(std::size_t output) {
    for (std::size_t user = 0; user < kTile; user += kUsers) {
      multiply<Vector, kUsers, kWide>(
          inputs + user * stride, stride, layer, output, pairs,
          [&](std::size_t other, std::size_t vector, typename Vector::I sum) {
            const std::size_t at = output + vector * Vector::kLanes;
            done(user + other, at,
                 Vector::fma(Vector::to_float(sum), Vector::load_f(layer.scale + at), Vector::load_f(layer.bias + at)));
          });
    }
  };
  std::size_t output = 0;
  for (; output + Vector::kWide * Vector::kLanes <= layer.outputs; output += Vector::kWide * Vector::kLanes) {
    chunk.template operator()<Vector::kWide>(output);
  }
  for (; output < layer.outputs; output += Vector::kLanes) {
    chunk.template operator()<1>(output);
  }
}

/// e^x, to 2 units in the last place, for x <= 0 (or a little above); 2^-126 or so below -87.
template <class Vector>
inline typename Vector::F exponential(typename Vector::F x) noexcept {
  x = Vector::max(x, Vector::set_f(-87.0F));
  const auto n = Vector::round(Vector::mul(x, Vector::set_f(1.44269504F)));
  auto r = Vector::fma(n, Vector::set_f(-0.693359375F), x);
  r = Vector::fma(n, Vector::set_f(2.12194440e-4F), r);
  auto p = Vector::set_f(1.9875691500e-4F);  // Cephes' expf
  constexpr float kRest[] = {1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F};
  for (const float c : kRest) {
    p = Vector::fma(p, r, Vector::set_f(c));
  }
  const auto one = Vector::set_f(1);
  return Vector::mul(Vector::fma(Vector::mul(p, r), r, Vector::add(r, one)), Vector::exp2i(n));
}

template <class Vector>
inline typename Vector::F sigmoid(typename Vector::F x) noexcept {
  const auto one = Vector::set_f(1);
  const auto magnitude = Vector::max(x, Vector::sub(Vector::set_f(0), x));
  const auto small = exponential<Vector>(Vector::sub(Vector::set_f(0), magnitude));  // e^-|x|
  // 1 / (1 + e^-x) = e^min(x, 0) / (1 + e^-|x|), of which no term overflows.
  const auto numerator = Vector::select_negative(x, small, one);
  return Vector::div(numerator, Vector::add(one, small));
}

/// Sums of embeddings over a pooled field's ids, as 16-bit integers, and the wide weights.
template <class Vector, class Id>
inline void pool_ids(const PackedModel& model, const PackedPool& pool, const TilePool& field, std::int16_t* out,
                     std::size_t stride, float* wide) noexcept {
  const auto* ids = static_cast<const Id*>(field.ids);
  for (std::size_t user = 0; user < kTile; ++user) {
    const std::int64_t begin = field.offsets[user];
    const std::int64_t end = field.offsets[user + 1];
    const float share = end > begin ? 1.0F / static_cast<float>(end - begin) : 0.0F;
    float sum_wide = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      sum_wide += pool.wide[ids[i]];
    }
    wide[user] += sum_wide;
    for (std::size_t at = 0; at < model.pool_width; at += Vector::kLanes) {
      auto sum = Vector::set_f(0);
      for (std::int64_t i = begin; i < end; ++i) {
        sum = Vector::add(sum, Vector::load_f(pool.table + std::size_t{ids[i]} * model.pool_width + at));
      }
      const auto scaled = Vector::mul(Vector::mul(sum, Vector::set_f(share)), Vector::load_f(pool.quantum + at));
      Vector::pack16(out + user * stride + at, Vector::to_int(scaled));
    }
  }
}

template <class Vector>
inline void pool(const PackedModel& model, const Tile& tile) noexcept {
  const std::size_t stride = model.pooled.inputs;
  for (std::size_t i = 0; i < model.num_pools; ++i) {
    std::int16_t* out = tile.pooled + i * model.pool_width;
    switch (tile.pools[i].width) {
      case 1:
        pool_ids<Vector, std::uint8_t>(model, model.pools[i], tile.pools[i], out, stride, tile.wide);
        break;
      case 2:
        pool_ids<Vector, std::uint16_t>(model, model.pools[i], tile.pools[i], out, stride, tile.wide);
        break;
      default:
        pool_ids<Vector, std::uint32_t>(model, model.pools[i], tile.pools[i], out, stride, tile.wide);
    }
  }
  apply<Vector>(model.pooled, tile.pooled, stride, [&](std::size_t user, std::size_t at, typename Vector::F value) {
    Vector::pack16(tile.first + user * model.columns + at, Vector::to_int(value));
  });
}

/// kCount registers of one user's first layer: the sum of its rows of the tables, from column `at` on.
template <class Vector, std::size_t kCount>
inline void look_up(const PackedModel& model, const Tile& tile, std::size_t user, std::size_t at) noexcept {
  typename Vector::I sums[kCount];
  std::int16_t* out = tile.first + user * model.columns + at;
  const std::int16_t* start = model.num_pools > 0 ? out : model.bias + at;
  for (std::size_t i = 0; i < kCount; ++i) {
    sums[i] = Vector::load_i(start + 2 * Vector::kLanes * i);
  }
  for (std::size_t table = 0; table < model.num_tables; ++table) {
    const std::int16_t* row = model.tables[table] + std::size_t{tile.index[table * kTile + user]} * model.columns + at;
    for (std::size_t i = 0; i < kCount; ++i) {
      sums[i] = Vector::add16(sums[i], Vector::load_i(row + 2 * Vector::kLanes * i));
    }
  }
  for (std::size_t i = 0; i < kCount; ++i) {
    Vector::store_i(out + 2 * Vector::kLanes * i, Vector::max16(sums[i], Vector::zero_i()));
  }
}

template <class Vector>
inline void first_layer(const PackedModel& model, const Tile& tile) noexcept {
  constexpr std::size_t kSpan = 2 * Vector::kLanes;  // columns of a register
  constexpr std::size_t kMany = Vector::kRegisters;
  for (std::size_t user = 0; user < kTile; ++user) {
    std::size_t at = 0;
    for (; at + kMany * kSpan <= model.columns; at += kMany * kSpan) {
      look_up<Vector, kMany>(model, tile, user, at);
    }
    for (; at < model.columns; at += kSpan) {
      look_up<Vector, 1>(model, tile, user, at);
    }
  }
}

/// Softmax of `count` of `lanes` logits of each user: `[kTile, lanes]` to `[count, kTile]`.
template <class Vector>
inline void softmax(const float* logits, std::size_t lanes, std::size_t count, float* weights) noexcept {
  for (std::size_t user = 0; user < kTile; user += Vector::kLanes) {
    auto most = Vector::gather(logits + user * lanes, lanes);
    for (std::size_t i = 1; i < count; ++i) {
      most = Vector::max(most, Vector::gather(logits + user * lanes + i, lanes));
    }
    auto sum = Vector::set_f(0);
    for (std::size_t i = 0; i < count; ++i) {
      const auto e = exponential<Vector>(Vector::sub(Vector::gather(logits + user * lanes + i, lanes), most));
      Vector::store_f(weights + i * kTile + user, e);
      sum = Vector::add(sum, e);
    }
    const auto share = Vector::div(Vector::set_f(1), sum);
    for (std::size_t i = 0; i < count; ++i) {
      float* weight = weights + i * kTile + user;
      Vector::store_f(weight, Vector::mul(Vector::load_f(weight), share));
    }
  }
}

template <class Vector>
inline void gate(const PackedModel& model, const PackedLayer& layer, const Tile& tile, std::size_t column,
                 std::size_t count) noexcept {
  apply<Vector>(layer, tile.first + column, model.columns,
                [&](std::size_t user, std::size_t at, typename Vector::F value) {
                  Vector::store_f(tile.gates + user * layer.outputs + at, value);
                });
  softmax<Vector>(tile.gates, layer.outputs, count, tile.weights);
}

/// The experts' deeper layers, mixed by the gate's weights.
template <class Vector>
inline void mix(const PackedModel& model, const Tile& tile) noexcept {
  const auto zero = Vector::set_f(0);
  for (std::size_t i = 0; i < kTile * model.mixed; i += Vector::kLanes) {
    Vector::store_f(tile.mixed + i, zero);
  }
  const auto add = [&](std::size_t expert, std::size_t user, std::size_t at, typename Vector::F value) {
    float* mixed = tile.mixed + user * model.mixed + at;
    const auto weight = Vector::set_f(tile.weights[expert * kTile + user]);
    Vector::store_f(mixed, Vector::fma(Vector::max(value, zero), weight, Vector::load_f(mixed)));
  };
  for (std::size_t expert = 0; expert < model.num_experts; ++expert) {
    const std::int16_t* inputs = tile.first + expert * model.expert_columns;
    std::size_t stride = model.columns;
    if (model.num_layers == 0) {
      for (std::size_t user = 0; user < kTile; ++user) {
        for (std::size_t at = 0; at < model.mixed; at += Vector::kLanes) {
          const auto scale = Vector::load_f(model.first_scale + expert * model.expert_columns + at);
          add(expert, user, at, Vector::mul(Vector::to_float(Vector::widen(inputs + user * stride + at)), scale));
        }
      }
    }
    for (std::size_t i = 0; i < model.num_layers; ++i) {
      const PackedLayer& layer = model.layers[i * model.num_experts + expert];
      if (i + 1 == model.num_layers) {
        apply<Vector>(layer, inputs, stride, [&](std::size_t user, std::size_t at, typename Vector::F value) {
          add(expert, user, at, value);
        });
        break;
      }
      std::int16_t* out = tile.between[i % 2];
      apply<Vector>(layer, inputs, stride, [&](std::size_t user, std::size_t at, typename Vector::F value) {
        Vector::pack16(out + user * layer.outputs + at, Vector::to_int(Vector::max(value, zero)));
      });
      inputs = out;
      stride = layer.outputs;
    }
  }
}

/// Critics, their gate and the wide term: probabilities.
template <class Vector>
inline void judge(const PackedModel& model, const Tile& tile) noexcept {
  constexpr std::size_t kUsers = 6;  // sums in registers, enough to hide the latency of fma
  static_assert(kTile % kUsers == 0);
  for (std::size_t user = 0; user < kTile; user += kUsers) {
    for (std::size_t at = 0; at < model.critic_lanes; at += Vector::kLanes) {
      typename Vector::F sums[kUsers];
      for (auto& sum : sums) {
        sum = Vector::load_f(model.critics_bias + at);
      }
      for (std::size_t i = 0; i < model.mixed; ++i) {
        const auto weight = Vector::load_f(model.critics_weight + i * model.critic_lanes + at);
        for (std::size_t j = 0; j < kUsers; ++j) {
          sums[j] = Vector::fma(Vector::set_f(tile.mixed[(user + j) * model.mixed + i]), weight, sums[j]);
        }
      }
      for (std::size_t j = 0; j < kUsers; ++j) {
        Vector::store_f(tile.opinions + (user + j) * model.critic_lanes + at, sums[j]);
      }
    }
  }
  for (std::size_t user = 0; user < kTile; user += Vector::kLanes) {
    const auto wide = Vector::load_f(tile.wide + user);
    auto sum = Vector::set_f(0);
    for (std::size_t i = 0; i < model.num_critics; ++i) {
      const auto opinion = Vector::gather(tile.opinions + user * model.critic_lanes + i, model.critic_lanes);
      const auto weight = Vector::load_f(tile.weights + i * kTile + user);
      sum = Vector::fma(sigmoid<Vector>(Vector::add(opinion, wide)), weight, sum);
    }
    Vector::store_f(tile.scores + user, Vector::mul(sum, Vector::set_f(model.critic_scale)));
  }
}

template <class Vector>
inline void score_tile(const PackedModel& model, const Tile& tile) noexcept {
  static_assert(kTile % Vector::kUsers == 0 && kTile % Vector::kLanes == 0);
  for (std::size_t user = 0; user < kTile; ++user) {
    float sum = 0;
    for (std::size_t table = 0; table < model.num_tables; ++table) {
      sum += model.wides[table][tile.index[table * kTile + user]];
    }
    tile.wide[user] = sum;
  }
  if (model.num_pools > 0) {
    pool<Vector>(model, tile);
  }
  first_layer<Vector>(model, tile);
  const std::size_t gates = std::size_t{model.num_experts} * model.expert_columns;
  gate<Vector>(model, model.expert_gate, tile, gates, model.num_experts);
  mix<Vector>(model, tile);
  gate<Vector>(model, model.critic_gate, tile, gates + model.gate_columns, model.num_critics);
  judge<Vector>(model, tile);
}

}  // namespace
}  // namespace lookalike::detail
