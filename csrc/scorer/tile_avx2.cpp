#if defined(__x86_64__)

#include <immintrin.h>

#include "scorer/tile_impl.h"

namespace lookalike::detail {
namespace {

struct Avx2 {
  static constexpr std::size_t kLanes = 8;
  static constexpr std::size_t kUsers = 4;  // 4 x 2 sums, and what GCC needs beside them, of 16 registers
  static constexpr std::size_t kWide = 2;
  static constexpr std::size_t kRegisters = 2;  // of each user
  static constexpr std::size_t kListed = 5;     // of a user's lists
  static constexpr std::size_t kAhead = 1;
  static constexpr bool kLooksUpBeside = false;
  using I = __m256i;
  using F = __m256;

  static I zero_i() noexcept { return _mm256_setzero_si256(); }
  static I load_i(const std::int16_t* from) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void store_i(std::int16_t* to, I value) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  }
  static I pair(const std::int16_t* from) noexcept {
    int both;
    __builtin_memcpy(&both, from, sizeof both);
    return _mm256_set1_epi32(both);
  }
  static I add16(I a, I b) noexcept { return _mm256_adds_epi16(a, b); }
  static I mul16(I a, I b) noexcept { return _mm256_mulhrs_epi16(a, b); }
  static I max16(I a, I b) noexcept { return _mm256_max_epi16(a, b); }
  static I dot(I sum, I a, I b) noexcept { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static I widen(const std::int16_t* from) noexcept {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void pack16(std::int16_t* to, I value) noexcept {
    const __m128i low = _mm256_castsi256_si128(value);
    const __m128i high = _mm256_extracti128_si256(value, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(low, high));
  }
  static F to_float(I value) noexcept { return _mm256_cvtepi32_ps(value); }
  static I to_int(F value) noexcept { return _mm256_cvtps_epi32(value); }
  static F load_f(const float* from) noexcept { return _mm256_loadu_ps(from); }
  static void store_f(float* to, F value) noexcept { _mm256_storeu_ps(to, value); }
  static F set_f(float value) noexcept { return _mm256_set1_ps(value); }
  static F add(F a, F b) noexcept { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) noexcept { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) noexcept { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) noexcept { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) noexcept { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) noexcept { return _mm256_max_ps(a, b); }
  static F round(F value) noexcept { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2i(F n) noexcept {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static F select_negative(F x, F a, F b) noexcept {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
  }
  static F zip_low(F a, F b) noexcept {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
  }
  static F zip_high(F a, F b) noexcept {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
  }
};

}  // namespace

void score_tile_avx2(const PackedModel& model, const Tile& tile) noexcept { score_tile<Avx2>(model, tile); }

}  // namespace lookalike::detail

#endif
