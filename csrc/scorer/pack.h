// A model as the kernels want it: folded, quantised, padded. Knows numbers, not users.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lookalike/buffer.h"
#include "lookalike/scorer.h"
#include "scorer/tile.h"

namespace lookalike::detail {

constexpr std::size_t padded(std::size_t count, std::size_t multiple) noexcept {
  return (count + multiple - 1) / multiple * multiple;
}

/// Throws InvalidInput: shapes that do not fit, or weights that are not finite.
void check_model(const ScorerModel& model);

/// How fields are looked up. A table has a row for each combination of its fields' ids: the sum of id * stride.
struct FieldPlan {
  int table = -1;            // or pooled
  int pool = -1;             // or looked up; lists that are looked up have one too, for long ones
  std::uint32_t stride = 1;  // in its table
};

struct Plan {
  struct Table {
    std::vector<std::size_t> fields;
    std::size_t first_row;  // counted through all tables
    std::size_t rows;
  };
  std::vector<FieldPlan> fields;
  std::vector<Table> tables;       // the last ones of a multi-valued field each
  std::vector<std::size_t> lists;  // their fields
  std::vector<std::size_t> pools;  // their fields
  std::size_t rows = 0;            // of all tables
};

/// Small single-valued fields share tables, larger ones have their own as long as all fit in fold_bytes. Of
/// multi-valued fields the smallest have tables, of 512 KiB together. Others are pooled. `columns` is how many 16-bit
/// numbers a row has.
[[nodiscard]] Plan make_plan(const std::vector<ScorerField>& fields, std::size_t columns, std::size_t fold_bytes);

/// Owns what its PackedModel points to.
class Packed {
 public:
  /// The model must have been checked.
  Packed(const ScorerModel& model, const ScorerOptions& options);

  Plan plan;
  PackedModel kernel{};
  std::size_t table_bytes = 0;

 private:
  struct Layout;  // where columns of the model go

  void pack_first(const ScorerModel& model, const Layout& layout);
  void pack_tables(const ScorerModel& model, const Layout& layout, const std::vector<std::vector<float>>& folded);
  PackedPool pack_pool(const ScorerModel& model, const Layout& layout, std::size_t field, std::span<const double> step,
                       std::span<double> weights, std::span<double> highest);
  void pack_lists(const ScorerModel& model, const Layout& layout);
  void pack_pools(const ScorerModel& model, const Layout& layout);
  void pack_experts(const ScorerModel& model);
  void pack_critics(const ScorerModel& model);

  /// A copy that begins on a cache line: a register of 64 bytes is then loaded from one.
  template <class T>
  T* keep(const std::vector<T>& values) {
    struct alignas(64) Line {
      std::byte bytes[64];
    };
    auto kept = std::make_shared<std::vector<Line>>(padded(values.size() * sizeof(T), sizeof(Line)) / sizeof(Line));
    T* data = reinterpret_cast<T*>(kept->data());
    std::ranges::uninitialized_copy(values, std::span(data, values.size()));
    kept_.push_back(std::move(kept));
    return data;
  }

  std::vector<double> step_;       // of the first layer's columns: the value of 1
  std::vector<double> list_step_;  // of lists' rows, which have finer ones
  std::vector<double> highest_;    // what a column's number can be at most, after the rectifier
  Buffer<std::int16_t> rows_;      // of all tables, in huge pages where there are many
  std::vector<std::shared_ptr<const void>> kept_;
};

}  // namespace lookalike::detail
