#if defined(__x86_64__)

#include <immintrin.h>

#include "topk/scan_impl.h"

namespace lookalike::detail {
namespace {

struct Avx512 {
  static constexpr std::size_t kLanes = 16;

  static std::uint64_t bits(__mmask16 compared, std::size_t part) noexcept {
    return std::uint64_t{compared} << (part * kLanes);
  }

  /// Loaded here and nowhere else: out of order, loads mislead the processor's prefetching, which is left to itself.
  static __m512 load_in_order(const float* scores) noexcept {
    __m512 values = _mm512_loadu_ps(scores);
    asm volatile("" : "+v"(values));
    return values;
  }

  // Comparing every score is slower than memory. A maximum may lose NaN; a sum is NaN if a term is. (It is, too, for
  // infinities of both signs, which does no harm.)
  static bool any_not_below(const float* scores, float bound) noexcept {
    __m512 most = load_in_order(scores);
    __m512 sum = most;
    for (std::size_t part = 1; part < kBlock / kLanes; ++part) {
      const __m512 values = load_in_order(scores + part * kLanes);
      most = _mm512_max_ps(most, values);
      sum = _mm512_add_ps(sum, values);
    }
    const std::uint32_t reached = _mm512_cmp_ps_mask(most, _mm512_set1_ps(bound), _CMP_NLT_UQ);
    const std::uint32_t nan = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
    // Joined as integers: joining mask registers (kor) is slower on Zen 5.
    return (reached | nan) != 0;
  }

  static std::uint64_t reached(const float* scores, float bound) noexcept {
    const __m512 bounds = _mm512_set1_ps(bound);
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      mask |= bits(_mm512_cmp_ps_mask(_mm512_loadu_ps(scores + part * kLanes), bounds, _CMP_GE_OQ), part);
    }
    return mask;
  }

  static bool any_nan(const float* scores) noexcept {
    const __m512 front = _mm512_add_ps(_mm512_loadu_ps(scores), _mm512_loadu_ps(scores + kLanes));
    const __m512 back = _mm512_add_ps(_mm512_loadu_ps(scores + 2 * kLanes), _mm512_loadu_ps(scores + 3 * kLanes));
    return _mm512_cmp_ps_mask(front, back, _CMP_UNORD_Q) != 0;
  }

  static std::uint64_t nan(const float* scores) noexcept {
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      const __m512 values = _mm512_loadu_ps(scores + part * kLanes);
      mask |= bits(_mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), part);
    }
    return mask;
  }

  static std::uint64_t equal(const float* scores, std::uint32_t wanted) noexcept {
    const __m512i all_wanted = _mm512_set1_epi32(static_cast<int>(wanted));
    std::uint64_t mask = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      const __m512i values = _mm512_castps_si512(_mm512_loadu_ps(scores + part * kLanes));
      mask |= bits(_mm512_cmpeq_epi32_mask(values, all_wanted), part);
    }
    return mask;
  }

  /// Without a branch: whether there is one or two is as good as random.
  static void admit_two(Scan& scan, const float* scores, std::uint32_t row, std::uint64_t candidates) noexcept {
    std::size_t num_keys = scan.num_keys;
    std::uint64_t ties = 0;
    for (int i = 0; i < 2; ++i) {
      const std::uint64_t there = candidates != 0 ? 1 : 0;
      const auto place = static_cast<std::uint32_t>(_tzcnt_u64(candidates) % kBlock);
      candidates &= candidates - 1;
      const Key key = make_key(scores[place], row + place);
      const std::uint64_t enters = there & static_cast<std::uint64_t>(key >= scan.threshold);
      scan.keys[num_keys] = key;
      num_keys += enters;
      ties += there & ~enters & static_cast<std::uint64_t>(rank_of(key) == rank_of(scan.threshold));
    }
    scan.num_keys = num_keys;
    scan.ties += ties;
  }

  /// Where three or more of a block may enter, keys are made of all sixteen scores of a register, and those that do are
  /// pressed together in one: pressing them into memory is microcode on some processors.
  static void admit(Scan& scan, const float* scores, std::uint32_t row, std::uint64_t candidates) noexcept {
    if (__builtin_popcountll(candidates) <= 2) {
      admit_two(scan, scores, row, candidates);
      return;
    }
    const __m512i threshold = _mm512_set1_epi64(static_cast<long long>(scan.threshold));
    const __m512i rank = _mm512_set1_epi32(static_cast<int>(rank_of(scan.threshold)));
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000U));
    // The inverted rows of the first eight scores; each further eight are lower by eight.
    const __m512i first = _mm512_sub_epi64(_mm512_set1_epi64(~row), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    Key* keys = scan.keys + scan.num_keys;
    std::uint64_t ties = 0;
    for (std::size_t part = 0; part < kBlock / kLanes; ++part) {
      const auto wanted = static_cast<__mmask16>(candidates >> (part * kLanes));
      // As orderable() in key.h does.
      const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(scores + part * kLanes));
      const __m512i flip = _mm512_or_si512(_mm512_srai_epi32(bits, 31), sign);
      const __m512i ranks =
          _mm512_mask_mov_epi32(_mm512_xor_si512(bits, flip), _mm512_cmpeq_epi32_mask(bits, sign), sign);
      const __mmask16 tied = _mm512_mask_cmpeq_epi32_mask(wanted, ranks, rank);
      std::uint32_t entered = 0;
      for (std::size_t half = 0; half < 2; ++half) {
        const __m256i eight = half == 0 ? _mm512_castsi512_si256(ranks) : _mm512_extracti64x4_epi64(ranks, 1);
        const auto before = static_cast<long long>(part * kLanes + half * 8);
        const __m512i key = _mm512_or_si512(_mm512_slli_epi64(_mm512_cvtepu32_epi64(eight), 32),
                                            _mm512_sub_epi64(first, _mm512_set1_epi64(before)));
        const __mmask8 enters =
            _mm512_mask_cmpge_epu64_mask(static_cast<__mmask8>(wanted >> (half * 8)), key, threshold);
        _mm512_storeu_si512(keys, _mm512_maskz_compress_epi64(enters, key));
        keys += __builtin_popcount(enters);
        entered |= static_cast<std::uint32_t>(enters) << (half * 8);
      }
      ties += static_cast<std::uint64_t>(__builtin_popcount(tied & ~entered));
    }
    scan.num_keys = static_cast<std::size_t>(keys - scan.keys);
    scan.ties += ties;
  }
};

}  // namespace

void scan_avx512(Scan& scan) noexcept { scan_with<Avx512>(scan); }

}  // namespace lookalike::detail

#endif
