#include "scorer/pack.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <span>
#include <string>

#include "lookalike/error.h"
#include "scorer/quantise.h"

namespace lookalike::detail {
namespace {

// Fields share a table of so many rows at most: of 448 columns, half of an L2 of 1 MiB.
constexpr std::size_t kSharedRows = 512;

// The sum of a column's largest values; the rest of 32,767 is for rounding each of them.
constexpr double kFirstMost = 32000;

// Tables of multi-valued fields take so much at most: a row of an id is read for each, so that they pay in an L2 of
// 1 MiB only, beside what else there is. In the last-level cache multiplying is as fast or faster.
constexpr std::size_t kListBytes = std::size_t{512} << 10;

// And there are so many. Their sums are made in a finer unit, of which they have kFirstMost at most but for rounding. A
// row is off by half a unit for its product's, and by as much for its share, which is off by 2^-16 of 32,000 units at
// most: a list by kLongest units, and half of one for its rows' own rounding. With a list that counts as whole, the
// share of which lacks 2^-15, that is kLongest + 1, and 32 * 13 = 416.
constexpr std::size_t kMostLists = 32;

// Pooled numbers have 13 bits, so that weights have room for as many in sums of 32.
constexpr double kPooledMost = 8191;

// A pooled field with more ids than this is bounded by its embeddings' largest numbers, not by folding all of them.
constexpr std::size_t kBoundedByFolding = 65536;

void check_size(const std::string& name, std::size_t given, std::size_t wanted) {
  if (given != wanted) {
    throw InvalidInput(name, name + " has " + std::to_string(given) + " numbers and must have " +
                                 std::to_string(wanted) + ": give the weights of one model");
  }
}

void check_weights(const std::string& name, std::span<const float> weights, std::size_t wanted) {
  check_size(name, weights.size(), wanted);
  if (!std::ranges::all_of(weights, [](float weight) { return std::isfinite(weight); })) {
    throw InvalidInput(name, name + " holds a number that is not finite: the model has diverged");
  }
}

void check_positive(const std::string& name, std::size_t value) {
  if (value == 0) {
    throw InvalidInput(name, name + " must be at least 1");
  }
}

}  // namespace

void check_model(const ScorerModel& model) {
  check_positive("fields", model.fields.size());
  check_positive("dim", model.dim);
  check_positive("num_experts", model.num_experts);
  check_positive("num_critics", model.num_critics);
  check_positive("gate_hidden", model.gate_hidden);
  check_positive("hidden", model.hidden.size());
  for (const std::uint32_t width : model.hidden) {
    // Wider, and the rounding of weights could fill a sum of 32 bits.
    if (width == 0 || width > 16384) {
      throw InvalidInput("hidden", "a layer of " + std::to_string(width) + " is not between 1 and 16384 wide");
    }
  }
  std::size_t ids = 0;
  for (const ScorerField& field : model.fields) {
    check_positive("size", field.size);
    ids += field.size;
  }
  const std::size_t experts = model.num_experts;
  const std::size_t width = experts * model.hidden.front() + 2 * std::size_t{model.gate_hidden};
  check_weights("table", model.table, ids * model.dim);
  check_weights("wide", model.wide, model.wide.empty() ? 0 : ids);
  check_weights("first_weight", model.first_weight, model.fields.size() * model.dim * width);
  check_weights("first_bias", model.first_bias, width);
  check_size("deeper_weights", model.deeper_weights.size(), model.hidden.size() - 1);
  check_size("deeper_biases", model.deeper_biases.size(), model.hidden.size() - 1);
  for (std::size_t i = 1; i < model.hidden.size(); ++i) {
    check_weights("deeper_weights", model.deeper_weights[i - 1],
                  experts * model.hidden[i - 1] * std::size_t{model.hidden[i]});
    check_weights("deeper_biases", model.deeper_biases[i - 1], experts * model.hidden[i]);
  }
  check_weights("expert_gate_weight", model.expert_gate_weight, model.gate_hidden * experts);
  check_weights("expert_gate_bias", model.expert_gate_bias, experts);
  check_weights("critic_gate_weight", model.critic_gate_weight, std::size_t{model.gate_hidden} * model.num_critics);
  check_weights("critic_gate_bias", model.critic_gate_bias, model.num_critics);
  check_weights("critics_weight", model.critics_weight, std::size_t{model.hidden.back()} * model.num_critics);
  check_weights("critics_bias", model.critics_bias, model.num_critics);
}

Plan make_plan(const std::vector<ScorerField>& fields, std::size_t columns, std::size_t fold_bytes) {
  struct Group {
    std::size_t rows;
    std::vector<std::size_t> fields;
  };
  std::vector<Group> groups;
  Plan plan{std::vector<FieldPlan>(fields.size()), {}, {}, {}, 0};
  std::vector<std::size_t> order(fields.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return fields[a].size < fields[b].size; });
  std::stable_partition(order.begin(), order.end(), [&](auto field) { return !fields[field].multi; });
  std::size_t left = fold_bytes;
  bool lists = false;
  for (const std::size_t field : order) {
    if (fields[field].multi && !lists) {
      lists = true;
      left = std::min(left, kListBytes);
    }
    const std::size_t bytes = fields[field].size * columns * sizeof(std::int16_t);
    if (bytes > left || plan.lists.size() == kMostLists) {
      plan.pools.push_back(field);
      continue;
    }
    left -= bytes;
    if (fields[field].multi) {
      plan.lists.push_back(field);
    } else {
      groups.push_back({fields[field].size, {field}});
    }
  }
  // The two smallest share one as long as that stays small.
  while (groups.size() > 1 && groups[0].rows * groups[1].rows <= kSharedRows) {
    Group both{groups[0].rows * groups[1].rows, groups[0].fields};
    std::ranges::copy(groups[1].fields, std::back_inserter(both.fields));
    groups.erase(groups.begin(), groups.begin() + 2);
    const auto place = std::ranges::upper_bound(groups, both.rows, {}, &Group::rows);
    groups.insert(place, std::move(both));
  }
  std::ranges::sort(plan.pools);
  for (std::size_t i = 0; i < plan.pools.size(); ++i) {
    plan.fields[plan.pools[i]].pool = static_cast<int>(i);
  }
  for (const Group& group : groups) {
    std::uint32_t stride = 1;
    for (const std::size_t field : group.fields) {
      plan.fields[field].table = static_cast<int>(plan.tables.size());
      plan.fields[field].stride = stride;
      stride *= fields[field].size;
    }
    plan.tables.push_back({group.fields, plan.rows, group.rows});
    plan.rows += group.rows;
  }
  for (std::size_t i = 0; i < plan.lists.size(); ++i) {
    const std::size_t field = plan.lists[i];
    plan.fields[field].table = static_cast<int>(plan.tables.size());
    plan.fields[field].pool = static_cast<int>(plan.pools.size() + i);
    plan.tables.push_back({{field}, plan.rows, fields[field].size});
    plan.rows += fields[field].size;
  }
  return plan;
}

/// Experts and gates begin at multiples of kColumns; what is between is zero.
struct Packed::Layout {
  std::vector<std::size_t> place;    // [columns of the model]
  std::vector<std::size_t> id_base;  // [fields]: where a field's ids begin in the model's table

  explicit Layout(const ScorerModel& model) {
    const std::size_t expert = padded(model.hidden.front(), kColumns);
    const std::size_t gate = padded(model.gate_hidden, kColumns);
    for (std::size_t i = 0; i < model.num_experts; ++i) {
      for (std::size_t j = 0; j < model.hidden.front(); ++j) {
        place.push_back(i * expert + j);
      }
    }
    for (std::size_t i = 0; i < 2; ++i) {
      for (std::size_t j = 0; j < model.gate_hidden; ++j) {
        place.push_back(model.num_experts * expert + i * gate + j);
      }
    }
    std::size_t ids = 0;
    for (const ScorerField& field : model.fields) {
      id_base.push_back(ids);
      ids += field.size;
    }
  }

  /// A field's ids times its part of the first layer: `[size, columns of the model]`.
  [[nodiscard]] std::vector<float> fold(const ScorerModel& model, std::size_t field) const {
    const std::size_t width = place.size();
    std::vector<float> folded(model.fields[field].size * width);
    for (std::size_t id = 0; id < model.fields[field].size; ++id) {
      float* row = folded.data() + id * width;
      for (std::size_t d = 0; d < model.dim; ++d) {
        const float factor = model.table[(id_base[field] + id) * model.dim + d];
        const float* weights = model.first_weight.data() + (field * model.dim + d) * width;
        for (std::size_t j = 0; j < width; ++j) {
          row[j] += factor * weights[j];
        }
      }
    }
    return folded;
  }
};

Packed::Packed(const ScorerModel& model, const ScorerOptions& options) {
  kernel.expert_columns = static_cast<std::uint32_t>(padded(model.hidden.front(), kColumns));
  kernel.gate_columns = static_cast<std::uint32_t>(padded(model.gate_hidden, kColumns));
  kernel.num_experts = model.num_experts;
  kernel.num_critics = model.num_critics;
  kernel.columns = model.num_experts * kernel.expert_columns + 2 * kernel.gate_columns;
  kernel.pool_width = static_cast<std::uint32_t>(padded(model.dim, kLanes));
  plan = make_plan(model.fields, kernel.columns, options.fold_bytes);
  kernel.num_tables = static_cast<std::uint32_t>(plan.tables.size() - plan.lists.size());
  kernel.num_lists = static_cast<std::uint32_t>(plan.lists.size());
  kernel.num_pools = static_cast<std::uint32_t>(plan.pools.size());
  const Layout layout(model);
  pack_first(model, layout);
  pack_lists(model, layout);
  pack_pools(model, layout);
  pack_experts(model);
  pack_critics(model);
}

void Packed::pack_first(const ScorerModel& model, const Layout& layout) {
  const std::size_t width = layout.place.size();
  std::vector<double> lowest(model.first_bias.begin(), model.first_bias.end());
  std::vector<double> highest = lowest;
  std::vector<double> reach(width);
  std::ranges::transform(lowest, reach.begin(), [](double bias) { return std::abs(bias); });
  std::vector<double> list_reach(width, 0);
  std::vector<std::vector<float>> folded(model.fields.size());
  for (std::size_t field = 0; field < model.fields.size(); ++field) {
    std::vector<double> least(width, 0);  // of an empty list
    std::vector<double> most(width, 0);
    if (plan.fields[field].table < 0 && model.fields[field].size > kBoundedByFolding) {
      for (std::size_t d = 0; d < model.dim; ++d) {
        double largest = 0;
        for (std::size_t id = 0; id < model.fields[field].size; ++id) {
          largest = std::max<double>(largest, std::abs(model.table[(layout.id_base[field] + id) * model.dim + d]));
        }
        for (std::size_t j = 0; j < width; ++j) {
          most[j] += largest * std::abs(model.first_weight[(field * model.dim + d) * width + j]);
        }
      }
      std::ranges::transform(most, least.begin(), std::negate<>());
    } else {
      folded[field] = layout.fold(model, field);
      for (std::size_t i = 0; i < folded[field].size(); ++i) {
        least[i % width] = std::min<double>(least[i % width], folded[field][i]);
        most[i % width] = std::max<double>(most[i % width], folded[field][i]);
      }
      if (plan.fields[field].table < 0) {
        folded[field] = {};
      }
    }
    for (std::size_t j = 0; j < width; ++j) {
      lowest[j] += least[j];
      highest[j] += most[j];
      const double more = std::max(-least[j], most[j]);
      reach[j] += more;
      list_reach[j] += plan.fields[field].table >= static_cast<int>(kernel.num_tables) ? more : 0;
    }
  }
  step_.assign(kernel.columns, 1);
  list_step_.assign(kernel.columns, 1);
  highest_.assign(kernel.columns, 0);
  std::vector<std::int16_t> list_unit(kernel.columns, 0);
  for (std::size_t j = 0; j < width; ++j) {
    const std::size_t place = layout.place[j];
    step_[place] = reach[j] > 0 ? reach[j] / kFirstMost : 1;
    // A whole number, so that multiplying by it is exact but for one rounding.
    const double unit = reach[j] > 0 ? std::min(kMost, std::ceil(32768 * list_reach[j] / reach[j])) : 0;
    list_unit[place] = static_cast<std::int16_t>(unit);
    list_step_[place] = unit > 0 ? step_[place] * unit / 32768 : 1;
    const double rounding = static_cast<double>(model.fields.size() + plan.lists.size() * (kLongest + 1)) + 1;
    highest_[place] = std::min(kMost, std::ceil(std::max(0.0, highest[j]) / step_[place]) + rounding);
  }
  kernel.list_unit = keep(list_unit);
  pack_tables(model, layout, folded);
}

void Packed::pack_tables(const ScorerModel& model, const Layout& layout,
                         const std::vector<std::vector<float>>& folded) {
  const std::size_t width = layout.place.size();
  const std::size_t columns = kernel.columns;
  rows_.resize(plan.rows * columns + kColumns);
  std::ranges::fill(rows_, std::int16_t{0});
  const auto lines = reinterpret_cast<std::uintptr_t>(rows_.data()) / sizeof(std::int16_t);
  std::int16_t* rows = rows_.data() + (kColumns - lines % kColumns) % kColumns;  // from a cache line on
  std::vector<float> wide(plan.rows, 0);
  std::vector<double> sum(width);
  std::size_t row = 0;
  for (const Plan::Table& table : plan.tables) {
    const std::vector<double>& step = model.fields[table.fields.front()].multi ? list_step_ : step_;
    for (std::size_t i = 0; i < table.rows; ++i, ++row) {
      std::ranges::fill(sum, 0);
      if (table.first_row == 0 && kernel.num_tables > 0) {
        std::ranges::copy(model.first_bias, sum.begin());
      }
      for (const std::size_t field : table.fields) {
        const std::size_t id = i / plan.fields[field].stride % model.fields[field].size;
        for (std::size_t j = 0; j < width; ++j) {
          sum[j] += folded[field][id * width + j];
        }
        wide[row] += model.wide.empty() ? 0 : model.wide[layout.id_base[field] + id];
      }
      for (std::size_t j = 0; j < width; ++j) {
        const std::size_t place = layout.place[j];
        rows[row * columns + place] = static_cast<std::int16_t>(std::lround(sum[j] / step[place]));
      }
    }
  }
  kernel.rows = rows;
  table_bytes += rows_.size() * sizeof(std::int16_t) + wide.size() * sizeof(float);
  kernel.wides = keep(wide);
  // Where there is a table, it is in the first one.
  std::vector<std::int16_t> bias(kernel.columns);
  for (std::size_t j = 0; j < width && kernel.num_tables == 0; ++j) {
    bias[layout.place[j]] = static_cast<std::int16_t>(std::lround(model.first_bias[j] / step_[layout.place[j]]));
  }
  kernel.bias = keep(bias);
}

/// Its part of `weights` [pool_width, columns], which are for integers -highest .. highest.
PackedPool Packed::pack_pool(const ScorerModel& model, const Layout& layout, std::size_t field,
                             std::span<const double> step, std::span<double> weights, std::span<double> highest) {
  const std::size_t width = layout.place.size();
  const std::size_t size = model.fields[field].size;
  const std::size_t base = layout.id_base[field];
  std::vector<float> table(size * kernel.pool_width);
  std::vector<float> quantum(kernel.pool_width, 0);
  std::vector<float> wide(size, 0);
  for (std::size_t id = 0; id < size; ++id) {
    std::copy_n(model.table.begin() + static_cast<std::ptrdiff_t>((base + id) * model.dim), model.dim,
                table.begin() + static_cast<std::ptrdiff_t>(id * kernel.pool_width));
    wide[id] = model.wide.empty() ? 0 : model.wide[base + id];
  }
  for (std::size_t d = 0; d < model.dim; ++d) {
    float largest = 0;
    for (std::size_t id = 0; id < size; ++id) {
      largest = std::max(largest, std::abs(table[id * kernel.pool_width + d]));
    }
    if (largest == 0) {
      continue;
    }
    quantum[d] = static_cast<float>(kPooledMost / largest);
    highest[d] = kPooledMost + 1;
    for (std::size_t j = 0; j < width; ++j) {
      const std::size_t place = layout.place[j];
      weights[d * kernel.columns + place] =
          model.first_weight[(field * model.dim + d) * width + j] / (double{quantum[d]} * step[place]);
    }
  }
  table_bytes += (table.size() + wide.size()) * sizeof(float);
  return {keep(table), keep(wide), keep(quantum)};
}

void Packed::pack_lists(const ScorerModel& model, const Layout& layout) {
  const std::size_t inputs = kernel.pool_width;
  std::vector<PackedList> lists;
  for (const std::size_t field : plan.lists) {
    std::vector<double> weights(inputs * kernel.columns, 0);
    std::vector<double> highest(inputs, 0);
    const PackedPool pool = pack_pool(model, layout, field, list_step_, weights, highest);
    const QuantisedLayer layer = quantise(weights, inputs, kernel.columns, highest, true);
    const std::size_t first_row = plan.tables[static_cast<std::size_t>(plan.fields[field].table)].first_row;
    lists.push_back({kernel.rows + first_row * kernel.columns, pool,
                     PackedLayer{static_cast<std::uint32_t>(inputs), kernel.columns, keep(layer.weights),
                                 keep(std::vector<float>(layer.scale.begin(), layer.scale.end())),
                                 keep(std::vector<float>(kernel.columns, 0))}});
  }
  kernel.lists = keep(lists);
}

void Packed::pack_pools(const ScorerModel& model, const Layout& layout) {
  const std::size_t inputs = padded(std::size_t{kernel.num_pools} * kernel.pool_width, kColumns);
  std::vector<PackedPool> pools;
  std::vector<double> weights(inputs * kernel.columns, 0);
  std::vector<double> highest(inputs, 0);
  for (const std::size_t field : plan.pools) {
    const std::size_t input = pools.size() * kernel.pool_width;
    pools.push_back(pack_pool(model, layout, field, step_, std::span(weights).subspan(input * kernel.columns),
                              std::span(highest).subspan(input)));
  }
  kernel.pools = keep(pools);
  std::vector<PackedLayer> layers;
  for (std::size_t begin = 0; begin < kernel.columns;) {
    const std::size_t columns =
        layers.size() < model.num_experts ? kernel.expert_columns : 2 * std::size_t{kernel.gate_columns};
    std::vector<double> part(inputs * columns);
    for (std::size_t input = 0; input < inputs; ++input) {
      std::copy_n(weights.begin() + static_cast<std::ptrdiff_t>(input * kernel.columns + begin), columns,
                  part.begin() + static_cast<std::ptrdiff_t>(input * columns));
    }
    QuantisedLayer layer = quantise(part, inputs, columns, highest, true);
    std::vector<float> bias(columns, 0);
    if (kernel.num_tables == 0) {
      std::copy_n(kernel.bias + begin, columns, bias.begin());
    }
    layers.push_back({static_cast<std::uint32_t>(inputs), static_cast<std::uint32_t>(columns), keep(layer.weights),
                      keep(std::vector<float>(layer.scale.begin(), layer.scale.end())), keep(bias)});
    begin += columns;
  }
  kernel.pooled = keep(layers);
}

}  // namespace lookalike::detail
