// The kernel at every level, for choose. Apart from tile.h, which the kernels themselves include.
#pragma once

#include "cpu/dispatch.h"
#include "scorer/tile.h"

namespace lookalike::detail {

#if defined(__x86_64__)
inline constexpr TileFunction kTiles[] = {score_tile_scalar, score_tile_avx2, score_tile_avx512, score_tile_avx512vnni,
                                          nullptr};
#elif defined(__aarch64__)
inline constexpr TileFunction kTiles[] = {score_tile_scalar, nullptr, nullptr, nullptr, score_tile_scalar};
#else
inline constexpr TileFunction kTiles[] = {score_tile_scalar, nullptr, nullptr, nullptr, nullptr};
#endif

}  // namespace lookalike::detail
