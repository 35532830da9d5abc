#if defined(__aarch64__)

#include <arm_neon.h>

#include "topk/scan_impl.h"

namespace lookalike::detail {
namespace {

struct Neon {
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kParts = kBlock / kLanes;

  /// NEON has no move of a comparison into a mask: narrow its lanes from four bytes to one, leave each its own bit of
  /// eight, and add neighbours until every byte holds eight scores.
  static std::uint64_t bits(const uint32x4_t (&compared)[kParts]) noexcept {
    constexpr std::uint8_t kBits[] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t own = vld1q_u8(kBits);
    uint8x16_t bytes[kParts / 4];
    for (std::size_t i = 0; i < kParts / 4; ++i) {
      const uint32x4_t* four = compared + 4 * i;
      const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(four[0]), vreinterpretq_u16_u32(four[1]));
      const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(four[2]), vreinterpretq_u16_u32(four[3]));
      bytes[i] = vandq_u8(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)), own);
    }
    const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(bytes[0], bytes[1]), vpaddq_u8(bytes[2], bytes[3]));
    return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
  }

  static bool any_not_below(const float* scores, float bound) noexcept {
    const float32x4_t bounds = vdupq_n_f32(bound);
    uint32x4_t all = vdupq_n_u32(~0U);
    for (std::size_t part = 0; part < kParts; ++part) {
      all = vandq_u32(all, vcltq_f32(vld1q_f32(scores + part * kLanes), bounds));
    }
    return vminvq_u32(all) == 0;
  }

  static std::uint64_t reached(const float* scores, float bound) noexcept {
    const float32x4_t bounds = vdupq_n_f32(bound);
    uint32x4_t reached[kParts];
    for (std::size_t part = 0; part < kParts; ++part) {
      reached[part] = vcgeq_f32(vld1q_f32(scores + part * kLanes), bounds);
    }
    return bits(reached);
  }

  static bool any_nan(const float* scores) noexcept {
    uint32x4_t numbers = vdupq_n_u32(~0U);
    for (std::size_t part = 0; part < kParts; ++part) {
      const float32x4_t values = vld1q_f32(scores + part * kLanes);
      numbers = vandq_u32(numbers, vceqq_f32(values, values));
    }
    return vminvq_u32(numbers) == 0;
  }

  static std::uint64_t nan(const float* scores) noexcept {
    uint32x4_t number[kParts];
    for (std::size_t part = 0; part < kParts; ++part) {
      const float32x4_t values = vld1q_f32(scores + part * kLanes);
      number[part] = vceqq_f32(values, values);
    }
    return ~bits(number);
  }

  static std::uint64_t equal(const float* scores, std::uint32_t wanted) noexcept {
    const uint32x4_t all_wanted = vdupq_n_u32(wanted);
    uint32x4_t same[kParts];
    for (std::size_t part = 0; part < kParts; ++part) {
      same[part] = vceqq_u32(vreinterpretq_u32_f32(vld1q_f32(scores + part * kLanes)), all_wanted);
    }
    return bits(same);
  }
};

}  // namespace

void scan_neon(Scan& scan) noexcept { scan_with<Neon>(scan); }

}  // namespace lookalike::detail

#endif
