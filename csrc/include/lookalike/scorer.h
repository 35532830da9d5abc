// Scores of a customised model of the MetaHeac family, fast: what the network computes, rewritten for a processor.
//
// The first layer is folded: a single-valued field's embedding times its weights is looked up in a table, and small
// fields share one table, so that the layer is a sum of some rows. Of a multi-valued field with a small vocabulary the
// mean of its ids' rows is. Fields whose table would not fit in the caches, multi-valued ones beyond L2, and lists of
// more than a dozen ids are pooled at the level of embeddings and multiplied. All are exact rewrites (mean pooling is
// linear); what is not exact is the arithmetic: 16-bit integers with a scale a column, sums in 32 bits, and float32
// from the last hidden layer on. A probability p is off by 6e-4 p (1 - p) at most on models tried so far: measure it
// against the model, and score those near a cut-off again where that matters. 8 bits in an expert's second layer would
// save about a seventh of the time and lose a digit or more, so it has 16 too.
//
// A score is the same to the bit for every number of threads and every way of cutting the users into calls, and differs
// between instruction sets by rounding only.
//
// Memory: the tables (up to ScorerOptions::fold_bytes, and two times the embeddings of multi-valued and pooled fields),
// and while it scores some 100 KiB a thread, and as much for each multi-valued field that has a table. Threads: those
// asked for start in a call and are joined before it returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "lookalike/topk.h"

namespace lookalike {

/// A field of a user, in the order of the model's first layer.
struct ScorerField {
  bool multi = false;      // any number of ids, of which the embeddings are averaged; otherwise exactly one
  std::uint32_t size = 0;  // ids are 0 .. size - 1
};

/// The weights of a customised model, as rows after rows: [a, b] is a rows of b numbers. Nothing is kept of it.
///
///   x = fields' embeddings, one after the other             [fields * dim]
///   y = x first_weight + first_bias                         [experts * hidden[0] + 2 * gate_hidden]
///   expert i: h = relu(part i of y); h = relu(h W + b) for each deeper layer
///   w = softmax(relu(gate part of y) expert_gate_weight + expert_gate_bias), v likewise for the critics
///   r = expert_scale * sum_i w_i h_i
///   p = critic_scale * sum_j v_j sigmoid(r critics_weight_j + critics_bias_j + sum of the ids' wide weights)
///
/// That is MetaHeac's Eq. 4 to 9, the campaign's constant part of the gates being in first_bias.
struct ScorerModel {
  std::vector<ScorerField> fields;
  std::uint32_t dim = 0;
  std::uint32_t num_experts = 0;
  std::uint32_t num_critics = 0;
  std::uint32_t gate_hidden = 0;
  std::vector<std::uint32_t> hidden;  // widths of an expert's layers, at least one
  float expert_scale = 1;
  float critic_scale = 1;
  std::span<const float> table;         // [ids of all fields, dim]
  std::span<const float> wide;          // [ids of all fields], or empty
  std::span<const float> first_weight;  // [fields * dim, experts * hidden[0] + 2 * gate_hidden]
  std::span<const float> first_bias;
  std::vector<std::span<const float>> deeper_weights;  // [experts, hidden[l - 1], hidden[l]] each
  std::vector<std::span<const float>> deeper_biases;   // [experts, hidden[l]] each
  std::span<const float> expert_gate_weight;           // [gate_hidden, experts]
  std::span<const float> expert_gate_bias;
  std::span<const float> critic_gate_weight;  // [gate_hidden, critics]
  std::span<const float> critic_gate_bias;
  std::span<const float> critics_weight;  // [hidden.back(), critics]
  std::span<const float> critics_bias;
};

struct ScorerOptions {
  /// Folded tables may take this much; fields beyond it, the largest, are pooled, and multi-valued ones first. A table
  /// in the last-level cache is faster than multiplying, one in memory is not.
  std::size_t fold_bytes = std::size_t{24} << 20;
};

/// One field of some users: ids of one width, as they lie in a pool.
struct ScorerColumn {
  const void* ids = nullptr;
  std::uint8_t width = 1;                 // bytes an id, 1, 2 or 4, unsigned
  std::size_t count = 0;                  // ids there are
  const std::int64_t* offsets = nullptr;  // multi-valued: user u has ids offsets[u] .. offsets[u + 1] - 1
};

/// Users, one column a field of the model.
struct ScorerUsers {
  std::size_t size = 0;
  std::span<const ScorerColumn> columns;
};

/// May be used by any number of threads at once.
class Scorer {
 public:
  /// Throws InvalidInput: a shape that does not fit the others (the message names it), or a weight that is not finite.
  explicit Scorer(const ScorerModel& model, const ScorerOptions& options = {});
  ~Scorer();
  Scorer(Scorer&&) noexcept;
  Scorer& operator=(Scorer&&) noexcept;

  /// Probabilities of the users. Throws InvalidInput: columns or `scores` do not fit the users or the model, an id is
  /// beyond its field's size (the message names the field and the user), or threads = 0.
  void score(const ScorerUsers& users, std::span<float> scores, unsigned threads = 1) const;

  /// Scores the users, who are rows first_row, ... of a selection, and pushes them while they are in the cache. Unlike
  /// a push, a call that fails may have pushed some of the rows. options.poll is called about every 50 ms and may
  /// throw. Throws as score and TopK::push do.
  void score_into(TopK& top, const ScorerUsers& users, std::uint64_t first_row, const PushOptions& options = {}) const;

  /// How the fields are dealt with: field i is looked up in table number tables()[i], which it may share; -1: pooled.
  [[nodiscard]] const std::vector<int>& tables() const noexcept;
  /// Bytes of everything that is looked up in.
  [[nodiscard]] std::size_t table_bytes() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lookalike
