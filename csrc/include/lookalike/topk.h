// Exact top-K of a stream of scores: the k highest, with their rows, of up to 2^32.
//
// What is selected is a law, not an accident. Rows are ordered by score, higher first, and equal scores by row, lower
// first. So the selection and its order are the same for every way of cutting the scores into pushes, for every order
// of the pushes, for every number of threads, for every merge tree and for every instruction set.
//
//   * -0 and +0 are equal and come back as +0. Infinities and denormal numbers are ordinary scores, also on a thread
//     that flushes denormals to zero.
//   * NaN is never selected. NanPolicy says whether a push that holds one is refused or goes on without it.
//   * A skipped row (a seed, a suppressed or ineligible user) is never selected, and its score is not looked at.
//
// Memory, beyond the scores: at most 48 bytes times k and 64 MiB, for any number of threads that push and finish
// afterwards, and allocated as needed: k may exceed the number of rows at no cost. Of that the selection itself takes
// 16 to 20 bytes times k; pushes under way 8 bytes times k and 16 MiB together, and one of them 16 times k more (others
// wait for it); or finish up to 24, of which 8 are the result: so a finish while others push may go beyond. On top of
// it, load takes the bytes once more, save makes them, and a distribution is 32 MiB, 96 while it is read, saved or
// loaded. Stack: under 32 KiB a thread. Threads: push and finish start `threads` - 1 of their own and join them before
// they return; none stays behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "lookalike/buffer.h"

namespace lookalike {

enum class NanPolicy : std::uint8_t {
  kRaise,  // a push with NaN in a row that is not skipped throws InvalidInput and leaves everything as it was
  kSkip,   // NaN is counted and passed over
};

struct TopKOptions {
  /// Rows there are: 0 .. num_rows - 1. A push beyond is an error. At most 2^32, which stands for "not known".
  std::uint64_t num_rows = std::uint64_t{1} << 32;

  /// Bitmap of rows never to be selected: row r is bit r & 7 of byte r >> 3. Empty: none is skipped. Otherwise it must
  /// cover every row pushed (all of num_rows, where that is given). It is not copied: it must outlive the TopK, and its
  /// bits must not change while a push is under way.
  std::span<const std::uint8_t> skip = {};

  NanPolicy nan = NanPolicy::kRaise;

  /// Keep what distribution() needs: 4 bytes for each of up to 2^23 rows, allocated at once. Wants num_rows. A push
  /// that fails takes its rows out of it, also where they had been pushed before.
  bool distribution = false;
};

struct PushOptions {
  /// Threads that share the push, the caller's among them; at least 1. A push too small to gain by it uses fewer.
  unsigned threads = 1;

  /// Called on the caller's thread at the start and about every 50 ms of scanning; a push of 65,536 scores or fewer is
  /// over before. It may throw to abandon the push: nothing of it is kept, and the exception is rethrown. It must not
  /// push to the same TopK.
  std::function<void()> poll = {};
};

/// The selection: rows[i] has scores[i]. min(k, eligible rows) of them.
struct Selection {
  Buffer<std::uint32_t> rows;
  Buffer<float> scores;
};

/// Where the selection ends.
struct Cutoff {
  float score;             // of the last row selected
  std::uint64_t tied;      // rows with exactly this score among all that were pushed and not skipped
  std::uint64_t selected;  // of these, in the selection: the lowest rows
};

/// How all scores are spread: those of one row in each stretch of ceil(num_rows / 2^23), chosen by a hash of its
/// number. So it is the same for every way of pushing, and of all rows where there are no more than 2^23.
struct Distribution {
  Buffer<float> scores;          // best first
  std::uint64_t population = 0;  // rows they stand for: pushed, not skipped, not NaN

  /// About the score of the rank-th best row (1 is the best); its true rank is within 0.1% of num_rows, but for one
  /// chance in a million. Throws InvalidInput: rank is not in 1 .. population, or no row of the sample was pushed yet.
  [[nodiscard]] float score_at(std::uint64_t rank) const;
};

/// Any member but the destructor and the move operations may be called from any number of threads at once. A failed
/// call (any exception) leaves the TopK as it was.
class TopK {
 public:
  /// Throws InvalidInput if num_rows exceeds 2^32 or the bitmap is too short for it.
  explicit TopK(std::uint64_t k, const TopKOptions& options = {});
  ~TopK();
  TopK(TopK&&) noexcept;
  TopK& operator=(TopK&&) noexcept;

  /// Offers scores[i] for row first_row + i. Every row is pushed at most once, in any order; only the caller can know
  /// that (a surplus of rows over num_rows is noticed).
  ///
  /// Throws InvalidInput: a row beyond num_rows or the bitmap, more rows than there are, threads = 0, or NaN under
  /// NanPolicy::kRaise (the message names the first such row).
  void push(std::span<const float> scores, std::uint64_t first_row, const PushOptions& options = {});

  /// Takes in all that `other` has seen, as if it had been pushed here; `other` stays as it is. Both must have the same
  /// k. Throws InvalidInput: another k, the TopK itself, or more rows than there are.
  void merge(const TopK& other);

  /// The selection so far; more may be pushed afterwards. `sorted`: best first; otherwise in no order that means
  /// anything. Throws InvalidInput: threads = 0.
  [[nodiscard]] Selection finish(bool sorted = true, unsigned threads = 1);

  /// Exact, like the selection; empty if nothing is selected. Costs one pass over the keys kept.
  [[nodiscard]] std::optional<Cutoff> cutoff();

  /// Of what was pushed so far. Throws InvalidInput without TopKOptions::distribution.
  [[nodiscard]] Distribution distribution() const;

  /// All that is known, as bytes that load takes in any process, on any machine: for what is to be merged elsewhere or
  /// gone on with later. The skip bitmap is not in it. The same rows give the same bytes, however they were pushed.
  /// Throws InvalidInput: a row that is selected was pushed twice, with the same score.
  [[nodiscard]] std::vector<std::byte> save();

  /// A TopK as it was when saved. `options` as for the constructor; num_rows and distribution must be those of the
  /// saved one. Throws DataCorrupted: truncated, changed, foreign, or of a version this library does not know;
  /// InvalidInput: other options.
  [[nodiscard]] static TopK load(std::span<const std::byte> partial, const TopKOptions& options = {});

  [[nodiscard]] std::uint64_t k() const noexcept;
  /// Rows pushed: selected or not, skipped and NaN included.
  [[nodiscard]] std::uint64_t rows_seen() const;
  [[nodiscard]] std::uint64_t rows_skipped() const;
  /// NaN scores in rows that were not skipped. Under NanPolicy::kRaise only those taken in by merge or load.
  [[nodiscard]] std::uint64_t nan_count() const;
  /// A score below this will not be selected, whatever is pushed. -inf while anything may still enter. It only rises,
  /// and may lag behind the cut-off.
  [[nodiscard]] float threshold() const noexcept;

 private:
  struct State;
  explicit TopK(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;
};

}  // namespace lookalike
