// Layers, functions and squares of numbers in vectors: what the network of tile_impl.h is made of, which says what a
// `Vector` is and why all is in the unnamed namespace.
#pragma once

#include "scorer/tile.h"

namespace lookalike::detail {
namespace {

// Where a loop over an array is to be unrolled, the array is to be registers, which GCC must be told.

/// As apply, for kWide vectors of outputs. Sums stay in registers.
template <class Vector, std::size_t kWide, class Done, class Meanwhile>
inline void multiply(const PackedLayer& layer, const std::int16_t* inputs, std::size_t stride, std::size_t first_output,
                     Done done, Meanwhile& meanwhile) noexcept {
  constexpr std::size_t kUsers = Vector::kUsers;
  typename Vector::I sums[kUsers][kWide];
#pragma GCC unroll 8
  for (auto& of_user : sums) {
#pragma GCC unroll 8
    for (auto& sum : of_user) {
      sum = Vector::zero_i();
    }
  }
  const std::int16_t* weights = layer.weights + 2 * first_output;
  std::size_t pair = 0;
  const auto step = [&]() __attribute__((always_inline)) {
    typename Vector::I row[kWide];
#pragma GCC unroll 8
    for (std::size_t vector = 0; vector < kWide; ++vector) {
      row[vector] = Vector::load_i(weights + 2 * Vector::kLanes * vector);
    }
#pragma GCC unroll 8
    for (std::size_t user = 0; user < kUsers; ++user) {
      const auto input = Vector::pair(inputs + user * stride + 2 * pair);
#pragma GCC unroll 8
      for (std::size_t vector = 0; vector < kWide; ++vector) {
        sums[user][vector] = Vector::dot(sums[user][vector], row[vector], input);
      }
    }
    ++pair;
    weights += 2 * layer.outputs;
  };
  meanwhile.around(layer.inputs / 2, step);
#pragma GCC unroll 8
  for (std::size_t vector = 0; vector < kWide; ++vector) {
    const std::size_t output = first_output + vector * Vector::kLanes;
    const auto scale = Vector::load_f(layer.scale + output);
    const auto bias = Vector::load_f(layer.bias + output);
#pragma GCC unroll 8
    for (std::size_t user = 0; user < kUsers; ++user) {
      done(user, output, Vector::fma(Vector::to_float(sums[user][vector]), scale, bias));
    }
  }
}

/// For a multiplication that nothing else is done beside.
struct Alone {
  template <class Step>
  void around(std::size_t count, Step step) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      step();
    }
  }
};

/// A layer for kUsers users: done(user, output, scale * sum + bias) for each vector of outputs.
/// meanwhile.around(count, step) calls step for each pair of inputs, and does what it likes between.
template <class Vector, class Done, class Meanwhile>
inline void apply(const PackedLayer& layer, const std::int16_t* inputs, std::size_t stride, Done done,
                  Meanwhile& meanwhile) noexcept {
  std::size_t output = 0;
  for (; output + Vector::kWide * Vector::kLanes <= layer.outputs; output += Vector::kWide * Vector::kLanes) {
    multiply<Vector, Vector::kWide>(layer, inputs, stride, output, done, meanwhile);
  }
  for (; output < layer.outputs; output += Vector::kLanes) {
    multiply<Vector, 1>(layer, inputs, stride, output, done, meanwhile);
  }
}

/// e^x, to 2 units in the last place, for x <= 0 (or a little above); 2^-126 or so below -87.
template <class Vector>
inline typename Vector::F exponential(typename Vector::F x) noexcept {
  x = Vector::max(x, Vector::set_f(-87.0F));
  const auto n = Vector::round(Vector::mul(x, Vector::set_f(1.44269504F)));
  auto r = Vector::fma(n, Vector::set_f(-0.693359375F), x);
  r = Vector::fma(n, Vector::set_f(2.12194440e-4F), r);
  auto p = Vector::set_f(1.9875691500e-4F);  // Cephes' expf
  constexpr float kRest[] = {1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F};
  for (const float c : kRest) {
    p = Vector::fma(p, r, Vector::set_f(c));
  }
  const auto one = Vector::set_f(1);
  return Vector::mul(Vector::fma(Vector::mul(p, r), r, Vector::add(r, one)), Vector::exp2i(n));
}

template <class Vector>
inline typename Vector::F sigmoid(typename Vector::F x) noexcept {
  const auto one = Vector::set_f(1);
  const auto magnitude = Vector::max(x, Vector::sub(Vector::set_f(0), x));
  const auto small = exponential<Vector>(Vector::sub(Vector::set_f(0), magnitude));  // e^-|x|
  // 1 / (1 + e^-x) = e^min(x, 0) / (1 + e^-|x|), of which no term overflows.
  const auto numerator = Vector::select_negative(x, small, one);
  return Vector::div(numerator, Vector::add(one, small));
}

/// `[kLanes, lanes]` to `[kLanes, kTile]`: as many rows of zipping halves as turn a square around.
template <class Vector>
inline void transpose(const float* from, std::size_t lanes, float* to) noexcept {
  constexpr std::size_t kLanes = Vector::kLanes;
  typename Vector::F rows[kLanes];
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kLanes; ++i) {
    rows[i] = Vector::load_f(from + i * lanes);
  }
#pragma GCC unroll 4
  for (std::size_t round = 1; round < kLanes; round *= 2) {
    typename Vector::F zipped[kLanes];
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = Vector::zip_low(rows[i], rows[i + kLanes / 2]);
      zipped[2 * i + 1] = Vector::zip_high(rows[i], rows[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (std::size_t i = 0; i < kLanes; ++i) {
      rows[i] = zipped[i];
    }
  }
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kLanes; ++i) {
    Vector::store_f(to + i * kTile, rows[i]);
  }
}

/// `[kTile, lanes]` to `[lanes, kTile]`: users beside each other.
template <class Vector>
inline void transpose_all(const float* outputs, std::size_t lanes, float* to) noexcept {
  for (std::size_t user = 0; user < kTile; user += Vector::kLanes) {
    for (std::size_t lane = 0; lane < lanes; lane += Vector::kLanes) {
      transpose<Vector>(outputs + user * lanes + lane, lanes, to + lane * kTile + user);
    }
  }
}

/// Of `count` logits of each user, `[count, kTile]`, in place.
template <class Vector>
inline void softmax(std::size_t count, float* weights) noexcept {
  for (std::size_t user = 0; user < kTile; user += Vector::kLanes) {
    auto most = Vector::load_f(weights + user);
    for (std::size_t i = 1; i < count; ++i) {
      most = Vector::max(most, Vector::load_f(weights + i * kTile + user));
    }
    auto sum = Vector::set_f(0);
    for (std::size_t i = 0; i < count; ++i) {
      float* weight = weights + i * kTile + user;
      const auto e = exponential<Vector>(Vector::sub(Vector::load_f(weight), most));
      Vector::store_f(weight, e);
      sum = Vector::add(sum, e);
    }
    const auto share = Vector::div(Vector::set_f(1), sum);
    for (std::size_t i = 0; i < count; ++i) {
      float* weight = weights + i * kTile + user;
      Vector::store_f(weight, Vector::mul(Vector::load_f(weight), share));
    }
  }
}

/// The sum of each vector's lanes, the first vector's in the first lane: zipping halves, as transpose does, and adding.
template <class Vector>
inline typename Vector::F sums_of(typename Vector::F (&rows)[Vector::kLanes]) noexcept {
#pragma GCC unroll 4
  for (std::size_t half = Vector::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < half; ++i) {
      rows[i] = Vector::add(Vector::zip_low(rows[i], rows[i + half]), Vector::zip_high(rows[i], rows[i + half]));
    }
  }
  return rows[0];
}

}  // namespace
}  // namespace lookalike::detail
