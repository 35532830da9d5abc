// The network over a tile of users, but for its vector operations. Included once by each instruction set's translation
// unit, which may share no code with another: everything is in the unnamed namespace and calls no library function.
//
// `Vector` has a count of 32-bit lanes, kLanes, types I and F of so many int32 (or twice as many int16) and float32,
// how many users (kUsers) by vectors of outputs (kWide) have their sums in registers together, how many registers a
// user's look-ups (kRegisters) and lists (kListed) take at once, how many rows are fetched or, with kLooksUpBeside,
// looked up beside a pair of their inputs (kAhead), and static functions:
//   load, zero, set (both types), store, pair (a pair of int16 in all lanes)
//   add16 (saturating), max16, mul16 (of 32,768ths, rounded), dot (sum of two products of int16, added to int32)
//   to_float, to_int (rounding to even), pack16 (saturating, to memory)
//   add, sub, mul, div, fma, max, round, exp2i (2 to the power of a whole number, at least -126), select_negative
//   zip_low, zip_high (lanes of two vectors in turns, and those that did not fit)
//
// A group of kUsers users goes through an expert at a time. While its second layer is multiplied, which leaves half of
// the loads free, the first layer of the next group is looked up, and the rows of the one after that are fetched.
#pragma once

#include "scorer/tile_lists.h"
#include "scorer/tile_math.h"
#include "scorer/tile_pool.h"

namespace lookalike::detail {
namespace {

/// A part of the first layer, that of an expert or (after the last one's) of both gates, for kUsers users.
struct Block {
  std::size_t number;
  std::size_t user;  // the first
  std::size_t begin;
  std::size_t columns;

  Block(const PackedModel& model, std::size_t number_, std::size_t user_) noexcept
      : number(number_),
        user(user_),
        begin(number_ * model.expert_columns),
        columns(number_ < model.num_experts ? model.expert_columns : 2 * model.gate_columns) {}

  /// The next users', or those of the next expert.
  template <class Vector>
  [[nodiscard]] Block next(const PackedModel& model) const noexcept {
    const bool last = user + Vector::kUsers == kTile;
    return {model, number + (last ? 1 : 0), last ? 0 : user + Vector::kUsers};
  }
};

/// Rows in tile.rows, user after user: those of the tables, and the sum of the lists' if there are any.
struct Lists {
  std::size_t rows;
  std::size_t beside;  // rows to look up beside each pair of inputs; 0: look-ups are done by themselves
  std::size_t length;  // rows of a user; those beyond `rows` hold zeros

  template <class Vector>
  static Lists of(const PackedModel& model) noexcept {
    const std::size_t rows = model.num_tables + (model.num_lists > 0 ? 1 : 0);
    if constexpr (Vector::kLooksUpBeside) {
      constexpr std::size_t kPairs = kBesideColumns / 2 / Vector::kUsers;  // of inputs, to look up a user beside
      static_assert(kPairs <= kMostPadding + 1 && kBesideColumns == Vector::kWide * Vector::kLanes);
      const std::size_t beside = (rows + kPairs - 1) / kPairs;
      if (model.num_tables > 0 && beside <= kMostBeside && model.num_layers > 0 &&
          model.expert_columns == kBesideColumns) {
        const PackedLayer& layer = model.layers[(model.num_layers - 1) * model.num_experts];
        if (layer.inputs == kBesideColumns && layer.outputs == kBesideColumns) {
          return {rows, beside, beside * kPairs};
        }
      }
    }
    return {rows, 0, rows};
  }
};

/// Brings kBesideColumns of some rows into L1 beside a multiplication. There is no branch between the products, for GCC
/// would take sums out of their registers for it.
template <class Vector>
class Ahead {
 public:
  Ahead(const Tile& tile, const Lists& lists, const Block& block, std::size_t column) noexcept
      : rows_(tile.rows + block.user * lists.length),
        last_(rows_ + (lists.length > 0 ? Vector::kUsers * lists.length - 1 : 0)),
        column_(block.begin + column) {}

  template <class Step>
  void around(std::size_t count, Step step) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      step();
#pragma GCC unroll 8
      for (std::size_t j = 0; j < Vector::kAhead; ++j) {
        __builtin_prefetch(*rows_ + column_);
        __builtin_prefetch(*rows_ + column_ + kColumns);
        rows_ += rows_ != last_ ? 1 : 0;
      }
    }
  }

 private:
  const std::int16_t* const* rows_;
  const std::int16_t* const* last_;
  std::size_t column_;
};

/// Looks a block of kBesideColumns up beside a multiplication, kEach rows a pair of its inputs, and fetches the block
/// after it.
template <class Vector, std::size_t kEach>
class Beside {
 public:
  Beside(const PackedModel& model, const Tile& tile, const Lists& lists, const Block& block, std::int16_t* out) noexcept
      : out_(out),
        start_(model.num_pools > 0 ? out : model.bias),
        start_stride_(model.num_pools > 0 ? kBesideColumns : 0),
        rows_(tile.rows + block.user * lists.length),
        column_(block.begin) {
    const Block after = block.next<Vector>(model);
    ahead_ = tile.rows + after.user * lists.length;
    ahead_column_ = after.begin;
  }

  template <class Step>
  void around(std::size_t count, Step step) noexcept {
    constexpr std::size_t kSpan = kBesideColumns / 2;
    const std::size_t pairs = count / Vector::kUsers;
    for (std::size_t user = 0; user < Vector::kUsers; ++user) {
      auto low = Vector::load_i(start_);
      auto high = Vector::load_i(start_ + kSpan);
      for (std::size_t i = 0; i < pairs; ++i) {
        step();
#pragma GCC unroll 8
        for (std::size_t j = 0; j < kEach; ++j) {
          const std::int16_t* row = *rows_++ + column_;
          low = Vector::add16(low, Vector::load_i(row));
          high = Vector::add16(high, Vector::load_i(row + kSpan));
          const std::int16_t* later = *ahead_++ + ahead_column_;
          __builtin_prefetch(later);
          __builtin_prefetch(later + kColumns);
        }
      }
      Vector::store_i(out_, Vector::max16(low, Vector::zero_i()));
      Vector::store_i(out_ + kSpan, Vector::max16(high, Vector::zero_i()));
      out_ += kBesideColumns;
      start_ += start_stride_;
    }
    for (std::size_t i = pairs * Vector::kUsers; i < count; ++i) {
      step();
    }
  }

 private:
  std::int16_t* out_;
  const std::int16_t* start_;
  std::size_t start_stride_;
  const std::int16_t* const* rows_;
  std::size_t column_;
  const std::int16_t* const* ahead_;
  std::size_t ahead_column_;
};

/// What the pooled fields add to a block: `[kUsers, columns]`.
template <class Vector>
inline void add_pooled(const PackedModel& model, const Tile& tile, const Block& block, std::int16_t* out) noexcept {
  if (model.num_pools == 0) {
    return;
  }
  const PackedLayer& layer = model.pooled[block.number];
  Alone alone;
  apply<Vector>(
      layer, tile.pooled + block.user * layer.inputs, layer.inputs,
      [&](std::size_t other, std::size_t at, typename Vector::F value) {
        Vector::pack16(out + other * block.columns + at, Vector::to_int(value));
      },
      alone);
}

/// kCount registers of each user of a block: the sums of their rows of the tables, on what add_pooled left.
template <class Vector, std::size_t kCount>
inline void look_up(const PackedModel& model, const Tile& tile, const Lists& lists, const Block& block, std::size_t at,
                    std::int16_t* out) noexcept {
  constexpr std::size_t kUsers = Vector::kUsers;
  constexpr std::size_t kSpan = 2 * Vector::kLanes;  // columns of a register
  typename Vector::I sums[kUsers][kCount];
#pragma GCC unroll 8
  for (std::size_t user = 0; user < kUsers; ++user) {
    const std::int16_t* start = model.num_pools > 0 ? out + user * block.columns + at : model.bias + block.begin + at;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kCount; ++i) {
      sums[user][i] = Vector::load_i(start + kSpan * i);
    }
  }
  const std::int16_t* const* rows = tile.rows + block.user * lists.length;
  for (std::size_t number = 0; number < lists.rows; ++number, ++rows) {
#pragma GCC unroll 8
    for (std::size_t user = 0; user < kUsers; ++user) {
      const std::int16_t* row = rows[user * lists.length] + block.begin + at;
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
      Vector::store_i(out + user * block.columns + at + kSpan * i, Vector::max16(sums[user][i], Vector::zero_i()));
    }
  }
}

template <class Vector>
inline void look_up(const PackedModel& model, const Tile& tile, const Lists& lists, const Block& block,
                    std::int16_t* out) noexcept {
  constexpr std::size_t kMany = Vector::kRegisters;
  constexpr std::size_t kSpan = 2 * Vector::kLanes;
  std::size_t at = 0;
  for (; at + kMany * kSpan <= block.columns; at += kMany * kSpan) {
    look_up<Vector, kMany>(model, tile, lists, block, at, out);
  }
  for (; at < block.columns; at += kSpan) {
    look_up<Vector, 1>(model, tile, lists, block, at, out);
  }
}

template <class Vector>
inline void gates(const PackedModel& model, const Tile& tile, const Lists& lists) noexcept {
  const std::size_t expert_lanes = model.expert_gate.outputs;
  const std::size_t critic_lanes = model.critic_gate.outputs;
  float* critic_outputs = tile.outputs + kTile * expert_lanes;
  for (std::size_t user = 0; user < kTile; user += Vector::kUsers) {
    const Block block(model, model.num_experts, user);
    add_pooled<Vector>(model, tile, block, tile.first[0]);
    look_up<Vector>(model, tile, lists, block, tile.first[0]);
    const bool last = user + Vector::kUsers == kTile;
    const Block next(model, last ? 0 : model.num_experts, last ? 0 : user + Vector::kUsers);
    const auto gate = [&](const PackedLayer& layer, std::size_t column, float* outputs) {
      Ahead<Vector> ahead(tile, lists, next, last ? 0 : column);
      apply<Vector>(
          layer, tile.first[0] + column, block.columns,
          [&](std::size_t other, std::size_t at, typename Vector::F value) {
            Vector::store_f(outputs + (user + other) * layer.outputs + at, value);
          },
          ahead);
    };
    gate(model.expert_gate, 0, tile.outputs);
    gate(model.critic_gate, model.gate_columns, critic_outputs);
  }
  transpose_all<Vector>(tile.outputs, expert_lanes, tile.expert_weights);
  transpose_all<Vector>(critic_outputs, critic_lanes, tile.critic_weights);
  softmax<Vector>(model.num_experts, tile.expert_weights);
  softmax<Vector>(model.num_critics, tile.critic_weights);
}

/// An expert's deeper layers on `first`, the block's first layer, mixed by the gate's weights; and the first layer of
/// the next block into `next`, unless that is null.
template <class Vector>
inline void expert(const PackedModel& model, const Tile& tile, const Lists& lists, const Block& block,
                   const std::int16_t* first, std::int16_t* next) noexcept {
  const auto zero = Vector::set_f(0);
  const auto add = [&](std::size_t other, std::size_t at, typename Vector::F value) {
    float* mixed = tile.mixed + (block.user + other) * model.mixed + at;
    const auto weight = Vector::set_f(tile.expert_weights[block.number * kTile + block.user + other]);
    const auto before = block.number == 0 ? zero : Vector::load_f(mixed);
    Vector::store_f(mixed, Vector::fma(Vector::max(value, zero), weight, before));
  };
  const Block after = block.next<Vector>(model);
  if (next != nullptr) {
    add_pooled<Vector>(model, tile, after, next);
  }
  std::size_t stride = block.columns;
  Alone alone;
  for (std::size_t i = 0; i + 1 < model.num_layers; ++i) {
    const PackedLayer& layer = model.layers[i * model.num_experts + block.number];
    std::int16_t* out = tile.between[i % 2];
    apply<Vector>(
        layer, first, stride,
        [&](std::size_t other, std::size_t at, typename Vector::F value) {
          Vector::pack16(out + other * layer.outputs + at, Vector::to_int(Vector::max(value, zero)));
        },
        alone);
    first = out;
    stride = layer.outputs;
  }
  if (model.num_layers == 0) {
    for (std::size_t other = 0; other < Vector::kUsers; ++other) {
      for (std::size_t at = 0; at < model.mixed; at += Vector::kLanes) {
        const auto scale = Vector::load_f(model.first_scale + block.begin + at);
        add(other, at, Vector::mul(Vector::to_float(Vector::widen(first + other * stride + at)), scale));
      }
    }
  } else {
    const PackedLayer& layer = model.layers[(model.num_layers - 1) * model.num_experts + block.number];
    if constexpr (Vector::kLooksUpBeside) {
      const auto both = [&]<std::size_t kEach>() {
        Beside<Vector, kEach> beside(model, tile, lists, after, next);
        multiply<Vector, Vector::kWide>(layer, first, stride, 0, add, beside);
      };
      static_assert(kMostBeside == 4);
      switch (next != nullptr ? lists.beside : 0) {
        case 1:
          return both.template operator()<1>();
        case 2:
          return both.template operator()<2>();
        case 3:
          return both.template operator()<3>();
        case 4:
          return both.template operator()<4>();
        default:
          break;
      }
    }
    if (next != nullptr) {
      Ahead<Vector> ahead(tile, lists, after, 0);
      apply<Vector>(layer, first, stride, add, ahead);
    } else {
      apply<Vector>(layer, first, stride, add, alone);
    }
  }
  if (next != nullptr) {
    look_up<Vector>(model, tile, lists, after, next);
  }
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

/// The users' rows of the tables, and their wide weights in those.
template <class Vector>
inline void list_rows(const PackedModel& model, const Tile& tile, const Lists& lists) noexcept {
  for (std::size_t user = 0; user < kTile; ++user) {
    const std::int16_t** rows = tile.rows + user * lists.length;
    float sum = 0;
    for (std::size_t table = 0; table < model.num_tables; ++table) {
      const std::size_t index = tile.index[table * kTile + user];
      sum += model.wides[index];
      rows[table] = model.rows + index * model.columns;
    }
    if (model.num_lists > 0) {
      rows[model.num_tables] = tile.listed_sums + user * model.columns;
    }
    for (std::size_t i = lists.rows; i < lists.length; ++i) {
      rows[i] = model.bias;  // zeros, as there are tables
    }
    tile.wide[user] = sum;
  }
}

template <class Vector>
inline void score_tile(const PackedModel& model, const Tile& tile) noexcept {
  static_assert(kTile % Vector::kUsers == 0 && kTile % Vector::kLanes == 0 && Vector::kUsers <= kMostUsers);
  const Lists lists = Lists::of<Vector>(model);
  list_rows<Vector>(model, tile, lists);
  pool<Vector>(model, tile);
  sum_lists<Vector>(model, tile);
  gates<Vector>(model, tile, lists);
  Block block(model, 0, 0);
  add_pooled<Vector>(model, tile, block, tile.first[0]);
  look_up<Vector>(model, tile, lists, block, tile.first[0]);
  for (std::size_t i = 0; block.number < model.num_experts; ++i) {
    const Block next = block.next<Vector>(model);
    expert<Vector>(model, tile, lists, block, tile.first[i % 2],
                   next.number < model.num_experts ? tile.first[(i + 1) % 2] : nullptr);
    block = next;
  }
  judge<Vector>(model, tile);
}

}  // namespace
}  // namespace lookalike::detail
