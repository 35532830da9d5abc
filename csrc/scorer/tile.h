// What a kernel is given: a model packed for it, and a tile of users. Plain pointers, because the kernels share no code
// with anything (see tile_impl.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lookalike::detail {

/// Users scored together: a multiple of 16 lanes, and of 6, 4 and 2 users whose sums fit in registers.
constexpr std::size_t kTile = 48;

/// Users whose sums fit in registers, with the instruction set that has most.
constexpr std::size_t kMostUsers = 6;

/// An expert of so many inputs and outputs of its last layer is multiplied while the next users are looked up, if there
/// are not too many tables for that: so many rows a pair of inputs, so that lists of rows are up to so much longer.
constexpr std::size_t kBesideColumns = 64;
constexpr std::size_t kMostBeside = 4;
constexpr std::size_t kMostPadding = 4;

/// Of a folded multi-valued field, lists of so many ids at most are looked up: longer ones are pooled and multiplied,
/// which takes as long however long they are.
constexpr std::size_t kLongest = 12;

/// Outputs are padded to whole vectors of the widest instruction set, and pairs of inputs to two of them.
constexpr std::size_t kLanes = 16;
constexpr std::size_t kColumns = 32;

/// y = scale * (x weights) + bias, where x and the weights are 16-bit integers.
struct PackedLayer {
  std::uint32_t inputs;         // a multiple of kColumns
  std::uint32_t outputs;        // a multiple of kLanes
  const std::int16_t* weights;  // [inputs / 2, outputs, 2]
  const float* scale;           // [outputs]
  const float* bias;            // [outputs]
};

/// A field that is pooled.
struct PackedPool {
  const float* table;    // [size, width]
  const float* wide;     // [size]
  const float* quantum;  // [width]: a pooled number times this is a 16-bit integer
};

/// A multi-valued field that is folded.
struct PackedList {
  const std::int16_t* rows;  // [size, columns of the first layer]
  PackedPool pool;           // for lists that are too long
  PackedLayer layer;         // what those add to all columns
};

struct PackedModel {
  std::uint32_t columns;  // of the first layer: experts * expert_columns + 2 * gate_columns
  std::uint32_t expert_columns;
  std::uint32_t gate_columns;
  std::uint32_t num_experts;
  std::uint32_t num_critics;

  std::uint32_t num_tables;
  const std::int16_t* rows;  // [rows of all tables, columns]; the first table's hold the bias
  const float* wides;        // [rows of all tables]
  const std::int16_t* bias;  // [columns], for a model without tables

  std::uint32_t num_pools;
  std::uint32_t pool_width;  // of an embedding, padded to kLanes
  const PackedPool* pools;
  // What they add to each expert's columns, and to the gates': [num_experts + 1] layers of [num_pools * pool_width,
  // padded] inputs. The scale gives units of the first layer.
  const PackedLayer* pooled;

  std::uint32_t num_lists;
  const PackedList* lists;
  const std::int16_t* list_unit;  // [columns]: what their unit is worth, in 32,768ths of the first layer's

  PackedLayer expert_gate;  // outputs beyond the experts mean nothing
  PackedLayer critic_gate;

  std::uint32_t num_layers;   // deeper ones
  const PackedLayer* layers;  // [num_layers, experts]; where another layer follows, in its units of 16 bits
  const float* first_scale;   // [experts * expert_columns]: units of the first layer, for a model without deeper ones

  std::uint32_t mixed;          // an expert's outputs, padded to kLanes
  const float* critics_weight;  // [critics, mixed], with expert_scale
  const float* critics_bias;    // [critics]
  float critic_scale;
};

/// A pooled or folded multi-valued field of kTile users.
struct TilePool {
  const void* ids;
  const std::int64_t* offsets;  // [kTile + 1]
  std::uint8_t width;
};

/// A row of a list, and what part of it is added, in 32,768ths: twice, as a pair.
struct ListedRow {
  const std::int16_t* row;
  std::int16_t share[2];
};

struct Tile {
  const std::uint32_t* index;  // [num_tables, kTile]: rows, counted through all tables
  const TilePool* pools;       // [num_pools + num_lists]

  // Room for the kernel, aligned to 64 bytes.
  const std::int16_t** rows;  // [kTile, num_tables + 1 + kMostPadding]
  ListedRow* listed;          // [kTile, num_lists * kLongest]
  std::int16_t* listed_sums;  // [kTile, columns]
  std::int16_t* long_means;   // [kTile, pool_width]
  std::int16_t* long_rows;    // [num_lists, kTile, columns]
  std::int16_t* pooled;       // [kTile, inputs of the pooled layers]
  std::int16_t* first[2];     // [kMostUsers, columns of an expert or both gates]
  std::int16_t* between[2];   // [kMostUsers, widest layer between]
  float* outputs;             // [kTile, lanes of both gates]
  float* expert_weights;      // [lanes of the gate, kTile]
  float* critic_weights;      // [lanes of the gate, kTile]
  float* mixed;               // [kTile, mixed]
  float* wide;                // [kTile]

  float* scores;  // [kTile]
};

using TileFunction = void (*)(const PackedModel&, const Tile&) noexcept;

void score_tile_scalar(const PackedModel& model, const Tile& tile) noexcept;
#if defined(__x86_64__)
void score_tile_avx2(const PackedModel& model, const Tile& tile) noexcept;
void score_tile_avx512(const PackedModel& model, const Tile& tile) noexcept;
void score_tile_avx512vnni(const PackedModel& model, const Tile& tile) noexcept;
#endif

}  // namespace lookalike::detail
