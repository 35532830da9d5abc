// Folded multi-valued fields of a tile of users. See tile_impl.h for what a `Vector` is and why all is in the unnamed
// namespace.
#pragma once

#include "scorer/tile_math.h"
#include "scorer/tile_pool.h"

namespace lookalike::detail {
namespace {

/// A field's rows of each user, after the `counts` that there are: its ids', or the one that a long list makes.
template <class Vector, class Id>
inline void list_ids(const PackedModel& model, const Tile& tile, std::size_t number, std::uint32_t* counts) noexcept {
  const PackedList& list = model.lists[number];
  const TilePool& field = tile.pools[model.num_pools + number];
  const auto* ids = static_cast<const Id*>(field.ids);
  std::int16_t* long_rows = tile.long_rows + number * kTile * model.columns;
  std::size_t many = 0;
  for (std::size_t user = 0; user < kTile; ++user) {
    ListedRow* listed = tile.listed + user * model.num_lists * kLongest + counts[user];
    const std::int64_t begin = field.offsets[user];
    const auto length = static_cast<std::size_t>(field.offsets[user + 1] - begin);
    if (length > kLongest) {
      tile.wide[user] +=
          pool_list<Vector, Id>(model, list.pool, field, user, tile.long_means + many * model.pool_width);
      *listed = {long_rows + many * model.columns, {32767, 32767}};
      ++counts[user];
      ++many;
      continue;
    }
    // 1/length to 2^-16, but for the whole.
    const auto share = static_cast<std::int16_t>(length < 2 ? 32767 : (65536 / length + 1) / 2);
    float wide = 0;
    for (std::size_t i = 0; i < length; ++i) {
      const std::size_t id = ids[begin + static_cast<std::int64_t>(i)];
      wide += list.pool.wide[id];
      listed[i] = {list.rows + id * model.columns, {share, share}};
    }
    tile.wide[user] += wide;
    counts[user] += static_cast<std::uint32_t>(length);
  }
  Alone alone;
  for (std::size_t first = 0; first < many; first += Vector::kUsers) {
    apply<Vector>(
        list.layer, tile.long_means + first * model.pool_width, model.pool_width,
        [&](std::size_t other, std::size_t at, typename Vector::F value) {
          Vector::pack16(long_rows + (first + other) * model.columns + at, Vector::to_int(value));
        },
        alone);
  }
}

/// kCount registers of the sum of a user's shares of rows.
template <class Vector, std::size_t kCount>
inline void add_listed(const PackedModel& model, const ListedRow* listed, std::size_t count, std::size_t column,
                       std::int16_t* out) noexcept {
  constexpr std::size_t kSpan = 2 * Vector::kLanes;
  typename Vector::I sums[kCount];
#pragma GCC unroll 32
  for (auto& sum : sums) {
    sum = Vector::zero_i();
  }
  for (const ListedRow* end = listed + count; listed != end; ++listed) {
    const std::int16_t* row = listed->row + column;
    const auto share = Vector::pair(listed->share);
#pragma GCC unroll 32
    for (std::size_t i = 0; i < kCount; ++i) {
      sums[i] = Vector::add16(sums[i], Vector::mul16(Vector::load_i(row + kSpan * i), share));
    }
  }
#pragma GCC unroll 32
  for (std::size_t i = 0; i < kCount; ++i) {
    const auto unit = Vector::load_i(model.list_unit + column + kSpan * i);
    Vector::store_i(out + column + kSpan * i, Vector::mul16(sums[i], unit));
  }
}

/// The sums of what each user's ids of folded multi-valued fields add to the first layer, and their wide weights.
template <class Vector>
inline void sum_lists(const PackedModel& model, const Tile& tile) noexcept {
  if (model.num_lists == 0) {
    return;
  }
  std::uint32_t counts[kTile] = {};
  for (std::size_t i = 0; i < model.num_lists; ++i) {
    switch (tile.pools[model.num_pools + i].width) {
      case 1:
        list_ids<Vector, std::uint8_t>(model, tile, i, counts);
        break;
      case 2:
        list_ids<Vector, std::uint16_t>(model, tile, i, counts);
        break;
      default:
        list_ids<Vector, std::uint32_t>(model, tile, i, counts);
    }
  }
  constexpr std::size_t kMany = Vector::kListed;
  constexpr std::size_t kSpan = 2 * Vector::kLanes;
  std::size_t at = 0;
  const auto columns = [&]<std::size_t kCount>() {
    for (std::size_t user = 0; user < kTile; ++user) {
      add_listed<Vector, kCount>(model, tile.listed + user * model.num_lists * kLongest, counts[user], at,
                                 tile.listed_sums + user * model.columns);
    }
    at += kCount * kSpan;
  };
  while (at + kMany * kSpan <= model.columns) {
    columns.template operator()<kMany>();
  }
  while (at < model.columns) {
    columns.template operator()<1>();
  }
}

}  // namespace
}  // namespace lookalike::detail
