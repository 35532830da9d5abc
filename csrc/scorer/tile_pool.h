// Pooled fields of a tile of users. See tile_impl.h for what a `Vector` is and why all is in the unnamed namespace.
#pragma once

#include "scorer/tile.h"

namespace lookalike::detail {
namespace {

/// The mean of the embeddings of a user's ids, as 16-bit integers; returns the sum of their wide weights.
template <class Vector, class Id>
inline float pool_list(const PackedModel& model, const PackedPool& pool, const TilePool& field, std::size_t user,
                       std::int16_t* out) noexcept {
  constexpr std::int64_t kAhead = 16;  // rows on their way at once, whoever's they are
  const std::size_t width = model.pool_width;
  const auto* ids = static_cast<const Id*>(field.ids);
  const std::int64_t last = field.offsets[kTile] - 1;
  const std::int64_t begin = field.offsets[user];
  const std::int64_t end = field.offsets[user + 1];
  const float share = end > begin ? 1.0F / static_cast<float>(end - begin) : 0.0F;
  float wide = 0;
  for (std::size_t at = 0; at < width; at += Vector::kLanes) {
    auto sum = Vector::set_f(0);
    for (std::int64_t i = begin; i < end; ++i) {
      if (at == 0) {
        const std::size_t ahead = ids[i + kAhead < last ? i + kAhead : last];
        __builtin_prefetch(pool.table + ahead * width);
        __builtin_prefetch(pool.wide + ahead);
        wide += pool.wide[ids[i]];
      }
      sum = Vector::add(sum, Vector::load_f(pool.table + std::size_t{ids[i]} * width + at));
    }
    const auto scaled = Vector::mul(Vector::mul(sum, Vector::set_f(share)), Vector::load_f(pool.quantum + at));
    Vector::pack16(out + at, Vector::to_int(scaled));
  }
  return wide;
}

template <class Vector, class Id>
inline void pool_ids(const PackedModel& model, const PackedPool& pool, const TilePool& field, std::int16_t* out,
                     std::size_t stride, float* wide) noexcept {
  for (std::size_t user = 0; user < kTile; ++user) {
    wide[user] += pool_list<Vector, Id>(model, pool, field, user, out + user * stride);
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

}  // namespace
}  // namespace lookalike::detail
