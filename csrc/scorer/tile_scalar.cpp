#include "scorer/tile_impl.h"

namespace lookalike::detail {
namespace {

/// Four lanes written out, of which a compiler makes what vector code the architecture has.
struct Scalar {
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kUsers = 2;
  static constexpr std::size_t kWide = 2;
  static constexpr std::size_t kRegisters = 4;
  static constexpr std::size_t kListed = 4;
  static constexpr std::size_t kAhead = 0;
  static constexpr bool kLooksUpBeside = false;
  static constexpr std::size_t kHalves = 2 * kLanes;
  struct I {
    std::int32_t lanes[kLanes];
  };
  struct F {
    float lanes[kLanes];
  };
  struct Halves {
    std::int16_t lanes[kHalves];
  };

  static Halves halves(const I& value) noexcept { return __builtin_bit_cast(Halves, value); }
  static I joined(const Halves& value) noexcept { return __builtin_bit_cast(I, value); }
  static std::int16_t saturated(std::int32_t value) noexcept {
    return static_cast<std::int16_t>(value > 32767 ? 32767 : value < -32768 ? -32768 : value);
  }
  template <class Value, class Each>
  static Value made(Each each) noexcept {
    Value value;
    for (std::size_t i = 0; i < kLanes; ++i) {
      value.lanes[i] = each(i);
    }
    return value;
  }
  template <class Each>
  static I made_of_halves(Each each) noexcept {
    Halves value;
    for (std::size_t i = 0; i < kHalves; ++i) {
      value.lanes[i] = each(i);
    }
    return joined(value);
  }

  static I zero_i() noexcept { return I{}; }
  static I load_i(const std::int16_t* from) noexcept {
    I value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  static void store_i(std::int16_t* to, const I& value) noexcept { __builtin_memcpy(to, &value, sizeof value); }
  static I pair(const std::int16_t* from) noexcept {
    return made_of_halves([from](std::size_t i) { return from[i % 2]; });
  }
  static I add16(const I& a, const I& b) noexcept {
    const Halves x = halves(a);
    const Halves y = halves(b);
    return made_of_halves([&](std::size_t i) { return saturated(x.lanes[i] + y.lanes[i]); });
  }
  static I mul16(const I& a, const I& b) noexcept {
    const Halves x = halves(a);
    const Halves y = halves(b);
    return made_of_halves([&](std::size_t i) { return saturated((x.lanes[i] * y.lanes[i] + 0x4000) >> 15); });
  }
  static I max16(const I& a, const I& b) noexcept {
    const Halves x = halves(a);
    const Halves y = halves(b);
    return made_of_halves([&](std::size_t i) { return x.lanes[i] > y.lanes[i] ? x.lanes[i] : y.lanes[i]; });
  }
  static I dot(const I& sum, const I& a, const I& b) noexcept {
    const Halves x = halves(a);
    const Halves y = halves(b);
    return made<I>([&](std::size_t i) {
      return sum.lanes[i] + (x.lanes[2 * i] * y.lanes[2 * i] + x.lanes[2 * i + 1] * y.lanes[2 * i + 1]);
    });
  }
  static I widen(const std::int16_t* from) noexcept {
    return made<I>([from](std::size_t i) { return std::int32_t{from[i]}; });
  }
  static void pack16(std::int16_t* to, const I& value) noexcept {
    for (std::size_t i = 0; i < kLanes; ++i) {
      to[i] = saturated(value.lanes[i]);
    }
  }
  static F to_float(const I& value) noexcept {
    return made<F>([&](std::size_t i) { return static_cast<float>(value.lanes[i]); });
  }
  static I to_int(const F& value) noexcept {
    return made<I>([&](std::size_t i) { return static_cast<std::int32_t>(__builtin_rintf(value.lanes[i])); });
  }
  static F load_f(const float* from) noexcept {
    F value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  static void store_f(float* to, const F& value) noexcept { __builtin_memcpy(to, &value, sizeof value); }
  static F set_f(float value) noexcept {
    return made<F>([value](std::size_t) { return value; });
  }
  static F add(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return a.lanes[i] + b.lanes[i]; });
  }
  static F sub(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return a.lanes[i] - b.lanes[i]; });
  }
  static F mul(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return a.lanes[i] * b.lanes[i]; });
  }
  static F div(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return a.lanes[i] / b.lanes[i]; });
  }
  /// Rounded twice: where a processor has no such instruction, rounding once is a library call.
  static F fma(const F& a, const F& b, const F& c) noexcept { return add(mul(a, b), c); }
  static F max(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i]; });
  }
  static F round(const F& value) noexcept {
    return made<F>([&](std::size_t i) { return __builtin_rintf(value.lanes[i]); });
  }
  static F exp2i(const F& n) noexcept {
    return made<F>(
        [&](std::size_t i) { return __builtin_bit_cast(float, (static_cast<std::int32_t>(n.lanes[i]) + 127) << 23); });
  }
  static F select_negative(const F& x, const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return x.lanes[i] < 0 ? a.lanes[i] : b.lanes[i]; });
  }
  static F zip_low(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return (i % 2 == 0 ? a : b).lanes[i / 2]; });
  }
  static F zip_high(const F& a, const F& b) noexcept {
    return made<F>([&](std::size_t i) { return (i % 2 == 0 ? a : b).lanes[(kLanes + i) / 2]; });
  }
};

}  // namespace

void score_tile_scalar(const PackedModel& model, const Tile& tile) noexcept { score_tile<Scalar>(model, tile); }

}  // namespace lookalike::detail
