#if defined(__x86_64__)

#include "scorer/tile_avx512.h"

namespace lookalike::detail {

void score_tile_avx512vnni(const PackedModel& model, const Tile& tile) noexcept { score_tile<Avx512>(model, tile); }

}  // namespace lookalike::detail

#endif
