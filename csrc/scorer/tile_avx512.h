// The vector operations of AVX-512, with and without VNNI. Included by those two translation units only.
#pragma once

#include <immintrin.h>

#include "scorer/tile_impl.h"

namespace lookalike::detail {
namespace {

struct Avx512 {
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kUsers = 6;  // 6 x 4 sums and 4 rows of weights: 28 of 32 registers
  static constexpr std::size_t kWide = 4;
  static constexpr std::size_t kRegisters = 2;  // of each user, for 64 columns at once
  static constexpr std::size_t kListed = 5;     // of a user's lists
  static constexpr std::size_t kAhead = 3;
  static constexpr bool kLooksUpBeside = true;
  using I = __m512i;
  using F = __m512;

  static I zero_i() noexcept { return _mm512_setzero_si512(); }
  static I load_i(const std::int16_t* from) noexcept { return _mm512_loadu_si512(from); }
  static void store_i(std::int16_t* to, I value) noexcept { _mm512_storeu_si512(to, value); }
  static I pair(const std::int16_t* from) noexcept {
    int both;
    __builtin_memcpy(&both, from, sizeof both);
    return _mm512_set1_epi32(both);
  }
  static I add16(I a, I b) noexcept { return _mm512_adds_epi16(a, b); }
  static I mul16(I a, I b) noexcept { return _mm512_mulhrs_epi16(a, b); }
  static I max16(I a, I b) noexcept { return _mm512_max_epi16(a, b); }
  static I dot(I sum, I a, I b) noexcept {
#if defined(__AVX512VNNI__)
    // GCC 12 copies sums around the intrinsic, and many to memory.
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
  }
  static I widen(const std::int16_t* from) noexcept {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void pack16(std::int16_t* to, I value) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(value));
  }
  static F to_float(I value) noexcept { return _mm512_cvtepi32_ps(value); }
  static I to_int(F value) noexcept { return _mm512_cvtps_epi32(value); }
  static F load_f(const float* from) noexcept { return _mm512_loadu_ps(from); }
  static void store_f(float* to, F value) noexcept { _mm512_storeu_ps(to, value); }
  static F set_f(float value) noexcept { return _mm512_set1_ps(value); }
  static F add(F a, F b) noexcept { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) noexcept { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) noexcept { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) noexcept { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) noexcept { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) noexcept { return _mm512_max_ps(a, b); }
  static F round(F value) noexcept { return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT); }
  static F exp2i(F n) noexcept { return _mm512_scalef_ps(_mm512_set1_ps(1), n); }
  /// a where x < 0, b elsewhere.
  static F select_negative(F x, F a, F b) noexcept {
    return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), a);
  }
  static F zip_low(F a, F b) noexcept {
    const I lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(a, lanes, b);
  }
  static F zip_high(F a, F b) noexcept {
    const I lanes = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(a, lanes, b);
  }
};

}  // namespace
}  // namespace lookalike::detail
