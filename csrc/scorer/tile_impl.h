// The network over a tile of users, but for its vector operations. Included once by each instruction set's translation
// unit, which may share no code with another: everything is in the unnamed namespace and calls no library function.
//
// `Vector` has a count of 32-bit lanes, kLanes, types I and F of so many int32 (or twice as many int16) and float32,
// how many users (kUsers) by vectors of outputs (kWide) have their sums in registers together, and static functions:
//   load, zero, set (both types), store, pair (a pair of int16 in all lanes)
//   add16 (saturating), max16, dot (sum of two products of int16, added to int32)
//   to_float, to_int (rounding to even), pack16 (saturating, to memory)
//   add, sub, mul, div, fma, max, round, exp2i (2 to the power of a whole number, at least -126), select_negative
//   zip_low, zip_high (lanes of two vectors in turns, and those that did not fit)
#pragma once

#include "scorer/tile.h"

namespace lookalike::detail {
namespace {

// Where a loop over an array is to be unrolled, the array is to be registers, which GCC must be told.

/// As apply, for kWide vectors of outputs. Sums stay in registers.
template <class Vector, std::size_t kWide, class Done, class Meanwhile>
inline void multiply(const PackedLayer& layer, const std::int16_t* inputs, std::size_t stride, std::size_t first_output,
                     Done done, Meanwhile& meanwhile) noexcept {
  constexpr std::size_t kUsers = Vector::kUsers;
  const std::size_t pairs = layer.inputs / 2;
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
    meanwhile.step();
  }
#pragma GCC unroll 8
  for (std::size_t vector = 0; vector < kWide; ++vector) {
    const std::size_t output = first_output + vector * Vector::kLanes;
    const auto scale = Vector::load_f(layer.scale + output);
    const auto bias = Vector::load_f(layer.bias + output);
#pragma GCC unroll 8
    for (std::size_t user = 0; user < kUsers; ++user) {
      done(user, output, Vector::fma(Vector::to_float(sums[user][vector]), scale, bias));
    }
  }
}

struct Nothing {
  void step() noexcept {}
};

/// A layer for kUsers users: done(user, output, scale * sum + bias) for each vector of outputs. meanwhile.step() is
/// called for each pair of inputs.
template <class Vector, class Done, class Meanwhile>
inline void apply(const PackedLayer& layer, const std::int16_t* inputs, std::size_t stride, Done done,
                  Meanwhile& meanwhile) noexcept {
  std::size_t output = 0;
  for (; output + Vector::kWide * Vector::kLanes <= layer.outputs; output += Vector::kWide * Vector::kLanes) {
    multiply<Vector, Vector::kWide>(layer, inputs, stride, output, done, meanwhile);
  }
  for (; output < layer.outputs; output += Vector::kLanes) {
    multiply<Vector, 1>(layer, inputs, stride, output, done, meanwhile);
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

/// Means of embeddings over a pooled field's ids, as 16-bit integers, and the wide weights.
template <class Vector, class Id>
inline void pool_ids(const PackedModel& model, const PackedPool& pool, const TilePool& field, std::int16_t* out,
                     std::size_t stride, float* wide) noexcept {
  constexpr std::int64_t kAhead = 16;  // rows on their way at once, whoever's they are
  const std::size_t width = model.pool_width;
  const auto* ids = static_cast<const Id*>(field.ids);
  const std::int64_t last = field.offsets[kTile] - 1;
  for (std::size_t user = 0; user < kTile; ++user) {
    const std::int64_t begin = field.offsets[user];
    const std::int64_t end = field.offsets[user + 1];
    const float share = end > begin ? 1.0F / static_cast<float>(end - begin) : 0.0F;
    float sum_wide = 0;
    auto sum = Vector::set_f(0);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::size_t ahead = ids[i + kAhead < last ? i + kAhead : last];
      __builtin_prefetch(pool.table + ahead * width);
      __builtin_prefetch(pool.wide + ahead);
      sum_wide += pool.wide[ids[i]];
      sum = Vector::add(sum, Vector::load_f(pool.table + std::size_t{ids[i]} * width));
    }
    wide[user] += sum_wide;
    for (std::size_t at = 0;;) {
      const auto scaled = Vector::mul(Vector::mul(sum, Vector::set_f(share)), Vector::load_f(pool.quantum + at));
      Vector::pack16(out + user * stride + at, Vector::to_int(scaled));
      at += Vector::kLanes;
      if (at >= width) {
        break;
      }
      sum = Vector::set_f(0);
      for (std::int64_t i = begin; i < end; ++i) {
        sum = Vector::add(sum, Vector::load_f(pool.table + std::size_t{ids[i]} * width + at));
      }
    }
  }
}

template <class Vector>
inline void pool(const PackedModel& model, const Tile& tile) noexcept {
  const std::size_t stride = model.num_pools > 0 ? model.pooled->inputs : 0;
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
}

/// A part of the first layer: that of an expert, or of both gates, after the last expert's.
struct Block {
  std::size_t number;
  std::size_t begin;
  std::size_t columns;

  Block(const PackedModel& model, std::size_t number_) noexcept
      : number(number_),
        begin(number_ * model.expert_columns),
        columns(number_ < model.num_experts ? model.expert_columns : 2 * model.gate_columns) {}
};

/// Brings what is looked up next into L1, some rows a step of what is done meanwhile. There is no branch in it: GCC
/// would take sums out of their registers for that.
template <class Vector>
class Ahead {
 public:
  /// 64 columns of the rows from the given one on.
  Ahead(const std::int16_t* const* rows, std::size_t count, std::size_t column) noexcept
      : rows_(rows), last_(rows + (count > 0 ? count - 1 : 0)), column_(column) {}

  void step() noexcept {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Vector::kAhead; ++i) {
      __builtin_prefetch(*rows_ + column_);
      __builtin_prefetch(*rows_ + column_ + kColumns);
      rows_ += rows_ != last_ ? 1 : 0;
    }
  }

 private:
  const std::int16_t* const* rows_;
  const std::int16_t* const* last_;
  std::size_t column_;
};

template <class Vector>
inline Ahead<Vector> rows_of(const PackedModel& model, const Tile& tile, std::size_t user,
                             std::size_t column) noexcept {
  return {tile.rows + user * model.num_tables, Vector::kUsers * model.num_tables, column};
}

/// kCount registers of kUsers users' first layer: the sums of their rows of the tables.
template <class Vector, std::size_t kCount>
inline void look_up(const PackedModel& model, const std::int16_t* const* rows, std::size_t column, std::int16_t* out,
                    std::size_t stride) noexcept {
  constexpr std::size_t kUsers = Vector::kUsers;
  constexpr std::size_t kSpan = 2 * Vector::kLanes;  // columns of a register
  typename Vector::I sums[kUsers][kCount];
#pragma GCC unroll 8
  for (std::size_t user = 0; user < kUsers; ++user) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kCount; ++i) {
      sums[user][i] =
          Vector::load_i(model.num_pools > 0 ? out + user * stride + kSpan * i : model.bias + column + kSpan * i);
    }
  }
  for (std::size_t table = 0; table < model.num_tables; ++table, rows += kUsers) {
#pragma GCC unroll 8
    for (std::size_t user = 0; user < kUsers; ++user) {
      const std::int16_t* row = rows[user] + column;
#pragma GCC unroll 8
      for (std::size_t i = 0; i < kCount; ++i) {
        sums[user][i] = Vector::add16(sums[user][i], Vector::load_i(row + kSpan * i));
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t user = 0; user < kUsers; ++user) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kCount; ++i) {
      Vector::store_i(out + user * stride + kSpan * i, Vector::max16(sums[user][i], Vector::zero_i()));
    }
  }
}

/// A block of the first layer of kUsers users into tile.first.
template <class Vector>
inline void first_layer(const PackedModel& model, const Tile& tile, const Block& block, std::size_t user) noexcept {
  constexpr std::size_t kMany = Vector::kRegisters;
  constexpr std::size_t kSpan = 2 * Vector::kLanes;
  if (model.num_pools > 0) {
    const PackedLayer& layer = model.pooled[block.number];
    Nothing nothing;
    apply<Vector>(
        layer, tile.pooled + user * layer.inputs, layer.inputs,
        [&](std::size_t other, std::size_t at, typename Vector::F value) {
          Vector::pack16(tile.first + other * block.columns + at, Vector::to_int(value));
        },
        nothing);
  }
  const std::int16_t* const* rows = tile.rows + user * model.num_tables;
  std::size_t at = 0;
  for (; at + kMany * kSpan <= block.columns; at += kMany * kSpan) {
    look_up<Vector, kMany>(model, rows, block.begin + at, tile.first + at, block.columns);
  }
  for (; at < block.columns; at += kSpan) {
    look_up<Vector, 1>(model, rows, block.begin + at, tile.first + at, block.columns);
  }
}

/// `[kLanes, lanes]` to `[kLanes, kTile]`: as many rows of zipping halves as turn a square around.
template <class Vector>
inline void transpose(const float* from, std::size_t lanes, float* to) noexcept {
  constexpr std::size_t kLanes = Vector::kLanes;
  typename Vector::F rows[kLanes];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kLanes; ++i) {
    rows[i] = Vector::load_f(from + i * lanes);
  }
#pragma GCC unroll 4
  for (std::size_t round = 1; round < kLanes; round *= 2) {
    typename Vector::F zipped[kLanes];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = Vector::zip_low(rows[i], rows[i + kLanes / 2]);
      zipped[2 * i + 1] = Vector::zip_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kLanes; ++i) {
      rows[i] = zipped[i];
    }
  }
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kLanes; ++i) {
    Vector::store_f(to + i * kTile, rows[i]);
  }
}

/// `[kTile, lanes]` to `[lanes, kTile]`: users beside each other.
template <class Vector>
inline void transpose_outputs(const float* outputs, std::size_t lanes, float* to) noexcept {
  for (std::size_t user = 0; user < kTile; user += Vector::kLanes) {
    for (std::size_t lane = 0; lane < lanes; lane += Vector::kLanes) {
      transpose<Vector>(outputs + user * lanes + lane, lanes, to + lane * kTile + user);
    }
  }
}

/// Of `count` logits of each user, `[count, kTile]`, in place.
template <class Vector>
inline void softmax(std::size_t count, float* weights) noexcept {
  for (std::size_t user = 0; user < kTile; user += Vector::kLanes) {
    auto most = Vector::load_f(weights + user);
    for (std::size_t i = 1; i < count; ++i) {
      most = Vector::max(most, Vector::load_f(weights + i * kTile + user));
    }
    auto sum = Vector::set_f(0);
    for (std::size_t i = 0; i < count; ++i) {
      float* weight = weights + i * kTile + user;
      const auto e = exponential<Vector>(Vector::sub(Vector::load_f(weight), most));
      Vector::store_f(weight, e);
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
inline void gates(const PackedModel& model, const Tile& tile) noexcept {
  const Block block(model, model.num_experts);
  const std::size_t expert_lanes = model.expert_gate.outputs;
  const std::size_t critic_lanes = model.critic_gate.outputs;
  float* critic_outputs = tile.outputs + kTile * expert_lanes;
  for (std::size_t user = 0; user < kTile; user += Vector::kUsers) {
    first_layer<Vector>(model, tile, block, user);
    const bool last = user + Vector::kUsers == kTile;
    const auto gate = [&](const PackedLayer& layer, std::size_t column, float* outputs) {
      auto ahead = last ? rows_of<Vector>(model, tile, 0, 0)
                        : rows_of<Vector>(model, tile, user + Vector::kUsers, block.begin + column);
      apply<Vector>(
          layer, tile.first + column, block.columns,
          [&](std::size_t other, std::size_t at, typename Vector::F value) {
            Vector::store_f(outputs + (user + other) * layer.outputs + at, value);
          },
          ahead);
    };
    gate(model.expert_gate, 0, tile.outputs);
    gate(model.critic_gate, model.gate_columns, critic_outputs);
  }
  transpose_outputs<Vector>(tile.outputs, expert_lanes, tile.expert_weights);
  transpose_outputs<Vector>(critic_outputs, critic_lanes, tile.critic_weights);
  softmax<Vector>(model.num_experts, tile.expert_weights);
  softmax<Vector>(model.num_critics, tile.critic_weights);
}

/// An expert's deeper layers for kUsers users, whose first layer is in tile.first, mixed by the gate's weights.
template <class Vector>
inline void expert(const PackedModel& model, const Tile& tile, std::size_t number, std::size_t user) noexcept {
  const auto zero = Vector::set_f(0);
  const auto add = [&](std::size_t other, std::size_t at, typename Vector::F value) {
    float* mixed = tile.mixed + (user + other) * model.mixed + at;
    const auto weight = Vector::set_f(tile.expert_weights[number * kTile + user + other]);
    const auto before = number == 0 ? zero : Vector::load_f(mixed);
    Vector::store_f(mixed, Vector::fma(Vector::max(value, zero), weight, before));
  };
  const std::int16_t* inputs = tile.first;
  std::size_t stride = model.expert_columns;
  if (model.num_layers == 0) {
    for (std::size_t other = 0; other < Vector::kUsers; ++other) {
      for (std::size_t at = 0; at < model.mixed; at += Vector::kLanes) {
        const auto scale = Vector::load_f(model.first_scale + number * stride + at);
        add(other, at, Vector::mul(Vector::to_float(Vector::widen(inputs + other * stride + at)), scale));
      }
    }
    return;
  }
  for (std::size_t i = 0; i + 1 < model.num_layers; ++i) {
    const PackedLayer& layer = model.layers[i * model.num_experts + number];
    std::int16_t* out = tile.between[i % 2];
    Nothing nothing;
    apply<Vector>(
        layer, inputs, stride,
        [&](std::size_t other, std::size_t at, typename Vector::F value) {
          Vector::pack16(out + other * layer.outputs + at, Vector::to_int(Vector::max(value, zero)));
        },
        nothing);
    inputs = out;
    stride = layer.outputs;
  }
  const PackedLayer& layer = model.layers[(model.num_layers - 1) * model.num_experts + number];
  const bool last = user + Vector::kUsers == kTile;
  auto ahead = rows_of<Vector>(model, tile, last ? 0 : user + Vector::kUsers, (number + last) * model.expert_columns);
  apply<Vector>(layer, inputs, stride, add, ahead);
}

/// The sum of each vector's lanes, the first vector's in the first lane: zipping halves, as transpose does, and adding.
template <class Vector>
inline typename Vector::F sums_of(typename Vector::F (&rows)[Vector::kLanes]) noexcept {
#pragma GCC unroll 4
  for (std::size_t half = Vector::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < half; ++i) {
      rows[i] = Vector::add(Vector::zip_low(rows[i], rows[i + half]), Vector::zip_high(rows[i], rows[i + half]));
    }
  }
  return rows[0];
}

/// Critics and the wide term: probabilities.
template <class Vector>
inline void judge(const PackedModel& model, const Tile& tile) noexcept {
  constexpr std::size_t kLanes = Vector::kLanes;
  for (std::size_t user = 0; user < kTile; user += kLanes) {
    const auto wide = Vector::load_f(tile.wide + user);
    auto score = Vector::set_f(0);
    for (std::size_t critic = 0; critic < model.num_critics; ++critic) {
      typename Vector::F rows[kLanes];
#pragma GCC unroll 16
      for (auto& row : rows) {
        row = Vector::set_f(0);
      }
      for (std::size_t at = 0; at < model.mixed; at += kLanes) {
        const auto weights = Vector::load_f(model.critics_weight + critic * model.mixed + at);
#pragma GCC unroll 16
        for (std::size_t i = 0; i < kLanes; ++i) {
          rows[i] = Vector::fma(Vector::load_f(tile.mixed + (user + i) * model.mixed + at), weights, rows[i]);
        }
      }
      const auto opinion = Vector::add(sums_of<Vector>(rows), Vector::set_f(model.critics_bias[critic]));
      const auto weight = Vector::load_f(tile.critic_weights + critic * kTile + user);
      score = Vector::fma(sigmoid<Vector>(Vector::add(opinion, wide)), weight, score);
    }
    Vector::store_f(tile.scores + user, Vector::mul(score, Vector::set_f(model.critic_scale)));
  }
}

template <class Vector>
inline void score_tile(const PackedModel& model, const Tile& tile) noexcept {
  static_assert(kTile % Vector::kUsers == 0 && kTile % Vector::kLanes == 0 && Vector::kUsers <= kMostUsers);
  for (std::size_t user = 0; user < kTile; ++user) {
    const std::size_t first = user / Vector::kUsers * Vector::kUsers;
    const std::int16_t** rows = tile.rows + first * model.num_tables + (user - first);
    float sum = 0;
    for (std::size_t table = 0; table < model.num_tables; ++table) {
      const std::size_t index = tile.index[table * kTile + user];
      sum += model.wides[index];
      rows[table * Vector::kUsers] = model.rows + index * model.columns;
    }
    tile.wide[user] = sum;
  }
  pool<Vector>(model, tile);
  gates<Vector>(model, tile);
  for (std::size_t number = 0; number < model.num_experts; ++number) {
    for (std::size_t user = 0; user < kTile; user += Vector::kUsers) {
      first_layer<Vector>(model, tile, Block(model, number), user);
      expert<Vector>(model, tile, number, user);
    }
  }
  judge<Vector>(model, tile);
}

}  // namespace
}  // namespace lookalike::detail
