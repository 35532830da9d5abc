// The network by its definition, in double, against every instruction set; and what is refused.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "lookalike/cpu.h"
#include "lookalike/error.h"
#include "lookalike/scorer.h"

using lookalike::InvalidInput;
using lookalike::Scorer;
using lookalike::ScorerColumn;
using lookalike::ScorerField;
using lookalike::ScorerModel;
using lookalike::ScorerUsers;
using lookalike::TopK;

namespace {

struct Shape {
  std::vector<ScorerField> fields;
  std::uint32_t dim = 16;
  std::uint32_t experts = 5;
  std::uint32_t critics = 5;
  std::uint32_t gate = 64;
  std::vector<std::uint32_t> hidden = {64, 64};
  bool wide = true;
};

/// A model of random weights, and who owns them.
struct RandomModel {
  ScorerModel model;
  std::vector<std::unique_ptr<std::vector<float>>> owned;

  RandomModel(const Shape& shape, unsigned seed) {
    std::mt19937 random(seed);
    const auto weights = [&](std::size_t count, double spread) {
      std::normal_distribution<double> normal(0, spread);
      owned.push_back(std::make_unique<std::vector<float>>(count));
      std::ranges::generate(*owned.back(), [&] { return static_cast<float>(normal(random)); });
      return std::span<const float>(*owned.back());
    };
    std::size_t ids = 0;
    for (const ScorerField& field : shape.fields) {
      ids += field.size;
    }
    const std::size_t inputs = shape.fields.size() * shape.dim;
    const std::size_t width = std::size_t{shape.experts} * shape.hidden[0] + 2 * std::size_t{shape.gate};
    model.fields = shape.fields;
    model.dim = shape.dim;
    model.num_experts = shape.experts;
    model.num_critics = shape.critics;
    model.gate_hidden = shape.gate;
    model.hidden = shape.hidden;
    model.expert_scale = 0.75F;
    model.critic_scale = 0.5F;
    model.table = weights(ids * shape.dim, 1);
    if (shape.wide) {
      model.wide = weights(ids, 0.3);
    }
    model.first_weight = weights(inputs * width, 1 / std::sqrt(static_cast<double>(inputs)));
    model.first_bias = weights(width, 0.5);
    for (std::size_t i = 1; i < shape.hidden.size(); ++i) {
      const double spread = 1 / std::sqrt(static_cast<double>(shape.hidden[i - 1]));
      model.deeper_weights.push_back(
          weights(std::size_t{shape.experts} * shape.hidden[i - 1] * shape.hidden[i], spread));
      model.deeper_biases.push_back(weights(std::size_t{shape.experts} * shape.hidden[i], 0.1));
    }
    model.expert_gate_weight = weights(std::size_t{shape.gate} * shape.experts, 0.2);
    model.expert_gate_bias = weights(shape.experts, 0.2);
    model.critic_gate_weight = weights(std::size_t{shape.gate} * shape.critics, 0.2);
    model.critic_gate_bias = weights(shape.critics, 0.2);
    model.critics_weight = weights(std::size_t{shape.hidden.back()} * shape.critics, 0.2);
    model.critics_bias = weights(shape.critics, 0.5);
  }
};

/// Users with random ids, in columns as a pool has them.
struct RandomUsers {
  std::vector<std::vector<std::uint32_t>> ids;
  std::vector<std::vector<std::byte>> bytes;
  std::vector<std::vector<std::int64_t>> offsets;
  std::vector<ScorerColumn> columns;
  std::size_t size;

  /// Lists have fewer than `lengths` ids.
  RandomUsers(const std::vector<ScorerField>& fields, std::size_t size_, unsigned seed, unsigned lengths = 7)
      : size(size_) {
    std::mt19937 random(seed);
    ids.resize(fields.size());
    bytes.resize(fields.size());
    offsets.resize(fields.size());
    for (std::size_t i = 0; i < fields.size(); ++i) {
      std::size_t count = size;
      if (fields[i].multi) {
        offsets[i].push_back(0);
        for (std::size_t user = 0; user < size; ++user) {
          offsets[i].push_back(offsets[i].back() + static_cast<std::int64_t>(random() % lengths));
        }
        count = static_cast<std::size_t>(offsets[i].back());
      }
      const std::uint8_t width = fields[i].size <= 256 ? 1 : fields[i].size <= 65536 ? 2 : 4;
      bytes[i].resize(count * width + 1);
      for (std::size_t j = 0; j < count; ++j) {
        ids[i].push_back(static_cast<std::uint32_t>(random() % fields[i].size));
        std::memcpy(bytes[i].data() + j * width, &ids[i].back(), width);  // the lower bytes come first
      }
      columns.push_back({bytes[i].data(), width, count, fields[i].multi ? offsets[i].data() : nullptr});
    }
  }

  [[nodiscard]] ScorerUsers all() const { return {size, columns}; }
};

std::vector<double> softmax(std::vector<double> logits) {
  double sum = 0;
  for (double& logit : logits) {
    logit = std::exp(logit);
    sum += logit;
  }
  for (double& logit : logits) {
    logit /= sum;
  }
  return logits;
}

/// x W + b for W [inputs, outputs], beginning at `from`.
std::vector<double> affine(const std::vector<double>& x, std::span<const float> w, std::size_t outputs,
                           std::span<const float> b) {
  std::vector<double> y(b.begin(), b.begin() + static_cast<std::ptrdiff_t>(outputs));
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = 0; j < outputs; ++j) {
      y[j] += x[i] * w[i * outputs + j];
    }
  }
  return y;
}

std::vector<double> rectified(std::vector<double> x) {
  std::ranges::for_each(x, [](double& value) { value = std::max(value, 0.0); });
  return x;
}

double reference(const ScorerModel& m, const RandomUsers& users, std::size_t user) {
  std::vector<double> x(m.fields.size() * m.dim, 0);
  double wide = 0;
  std::size_t base = 0;
  for (std::size_t field = 0; field < m.fields.size(); ++field) {
    const bool multi = m.fields[field].multi;
    const auto begin = multi ? static_cast<std::size_t>(users.offsets[field][user]) : user;
    const auto end = multi ? static_cast<std::size_t>(users.offsets[field][user + 1]) : user + 1;
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t id = base + users.ids[field][i];
      wide += m.wide.empty() ? 0 : m.wide[id];
      for (std::size_t d = 0; d < m.dim; ++d) {
        x[field * m.dim + d] += m.table[id * m.dim + d] / static_cast<double>(end - begin);
      }
    }
    base += m.fields[field].size;
  }
  const std::size_t width = m.first_bias.size();
  const std::vector<double> y = rectified(affine(x, m.first_weight, width, m.first_bias));
  const auto part = [&](std::size_t begin, std::size_t count) {
    const auto at = y.begin() + static_cast<std::ptrdiff_t>(begin);
    return std::vector<double>(at, at + static_cast<std::ptrdiff_t>(count));
  };
  const std::size_t gates = std::size_t{m.num_experts} * m.hidden[0];
  const auto w = softmax(affine(part(gates, m.gate_hidden), m.expert_gate_weight, m.num_experts, m.expert_gate_bias));
  const auto v = softmax(
      affine(part(gates + m.gate_hidden, m.gate_hidden), m.critic_gate_weight, m.num_critics, m.critic_gate_bias));
  std::vector<double> mixed(m.hidden.back(), 0);
  for (std::size_t expert = 0; expert < m.num_experts; ++expert) {
    std::vector<double> h = part(expert * m.hidden[0], m.hidden[0]);
    for (std::size_t i = 1; i < m.hidden.size(); ++i) {
      const std::size_t size = std::size_t{m.hidden[i - 1]} * m.hidden[i];
      h = rectified(affine(h, m.deeper_weights[i - 1].subspan(expert * size, size), m.hidden[i],
                           m.deeper_biases[i - 1].subspan(expert * m.hidden[i], m.hidden[i])));
    }
    for (std::size_t j = 0; j < h.size(); ++j) {
      mixed[j] += w[expert] * h[j] * m.expert_scale;
    }
  }
  double p = 0;
  const std::vector<double> opinions = affine(mixed, m.critics_weight, m.num_critics, m.critics_bias);
  for (std::size_t j = 0; j < m.num_critics; ++j) {
    p += v[j] / (1 + std::exp(-opinions[j] - wide));
  }
  return p * m.critic_scale;
}

const std::vector<ScorerField> kMixed = {{false, 3}, {true, 40}, {false, 300}, {false, 5}, {true, 9}, {false, 2000}};
const std::vector<ScorerField> kLarge = {{false, 3}, {true, 66000}, {false, 70000}};  // ids of four bytes

std::vector<ScorerField> with_list(std::vector<ScorerField> fields) {
  fields.push_back({true, 12});
  return fields;
}

std::vector<Shape> shapes() {
  return {
      {.fields = {{false, 4}, {false, 7}, {false, 100}, {false, 1000}}},
      {.fields = kMixed, .experts = 8},
      {.fields = {{true, 50}, {true, 600}}, .wide = false},
      {.fields = kLarge, .dim = 5, .experts = 1, .critics = 1, .gate = 7, .hidden = {9}},
      {.fields = kMixed, .dim = 20, .experts = 3, .critics = 18, .gate = 33, .hidden = {40, 100, 17}},
      // Tables enough to look up two, three and four rows beside a pair of inputs, and too many.
      {.fields = std::vector<ScorerField>(8, {false, 30}), .dim = 3, .experts = 2, .hidden = {64, 64, 64}},
      {.fields = std::vector<ScorerField>(13, {false, 30}), .dim = 3, .experts = 2},
      {.fields = with_list(std::vector<ScorerField>(18, {false, 30})), .dim = 3, .experts = 2},
      {.fields = std::vector<ScorerField>(21, {false, 30}), .dim = 3, .experts = 2},
      {.fields = {{false, 2}}, .dim = 1, .experts = 17, .critics = 2, .gate = 1, .hidden = {1, 1, 1, 1}},
  };
}

template <class Body>
void at_every_level(Body body) {
  for (const lookalike::SimdLevel level : lookalike::supported_simd_levels()) {
    lookalike::force_simd_level(level);
    body(std::string(lookalike::name(level)));
  }
  lookalike::reset_simd_level();
}

std::vector<float> scores_of(const Scorer& scorer, const ScorerUsers& users, unsigned threads = 1) {
  std::vector<float> scores(users.size);
  scorer.score(users, scores, threads);
  return scores;
}

std::vector<double> references(const RandomModel& random, const RandomUsers& users) {
  std::vector<double> expected;
  for (std::size_t user = 0; user < users.size; ++user) {
    expected.push_back(reference(random.model, users, user));
  }
  return expected;
}

/// At every level scores are off by less than `most`.
void check_scores(const Scorer& scorer, const RandomUsers& users, const std::vector<double>& expected, double most,
                  const std::string& which) {
  at_every_level([&](const std::string& level) {
    const std::vector<float> scores = scores_of(scorer, users.all());
    double worst = 0;
    for (std::size_t user = 0; user < users.size; ++user) {
      worst = std::max(worst, std::abs(scores[user] - expected[user]));
    }
    CHECK_EQUAL_IN(worst < most, true, level + " " + which + ": " + std::to_string(worst));
  });
}

}  // namespace

TEST(scores_are_those_of_the_definition) {
  unsigned seed = 1;
  for (const Shape& shape : shapes()) {
    const RandomModel random(shape, ++seed);
    const RandomUsers users(shape.fields, 100, seed);
    const std::vector<double> expected = references(random, users);
    // Everything folded that can be, some, nothing.
    for (const std::size_t fold_bytes : {std::size_t{1} << 30, std::size_t{1} << 19, std::size_t{0}}) {
      check_scores(Scorer(random.model, {fold_bytes}), users, expected, 1e-3,
                   "shape " + std::to_string(seed) + " folds " + std::to_string(fold_bytes));
    }
  }
}

TEST(long_lists_are_as_exact_as_short_ones) {
  const Shape shape{.fields = {{false, 5}, {true, 40}, {true, 9}, {true, 260}, {true, 3000}, {false, 30}}};
  const RandomModel random(shape, 40);
  const Scorer scorer(random.model);
  CHECK(scorer.tables()[3] >= 0 && scorer.tables()[4] < 0);
  for (const unsigned lengths : {2U, 16U, 700U}) {
    const RandomUsers users(shape.fields, 150, 41, lengths);
    check_scores(scorer, users, references(random, users), 5e-4, "under " + std::to_string(lengths));
  }
}

TEST(sums_of_lists_may_be_as_large_as_their_bounds) {
  // Everything is positive and fields have one id, so that sums are as large as any user's can be, and so is rounding,
  // the same for all ids of a list.
  const Shape shape{.fields = std::vector<ScorerField>(40, {true, 1}), .dim = 4};
  RandomModel random(shape, 42);
  for (const std::size_t positive : {0, 2, 3}) {  // table, first_weight, first_bias
    std::ranges::for_each(*random.owned[positive], [](float& weight) { weight = std::abs(weight); });
  }
  const Scorer scorer(random.model);
  CHECK_EQUAL(std::ranges::count(scorer.tables(), -1), 8);
  for (const unsigned lengths : {2U, 13U, 40U}) {
    const RandomUsers users(shape.fields, 150, 43, lengths);
    check_scores(scorer, users, references(random, users), 2e-3, "under " + std::to_string(lengths));
  }
}

TEST(neither_threads_nor_cuts_change_a_bit) {
  const Shape shape{.fields = kMixed};
  const RandomModel random(shape, 3);
  const RandomUsers users(shape.fields, 6500, 4, 16);
  const Scorer scorer(random.model, {std::size_t{1} << 20});
  at_every_level([&](const std::string& level) {
    const std::vector<float> whole = scores_of(scorer, users.all());
    CHECK_EQUAL_IN(scores_of(scorer, users.all(), 3) == whole, true, level);
    for (const std::size_t cut : {std::size_t{1}, std::size_t{47}, std::size_t{6145}}) {
      std::vector<ScorerColumn> columns = users.columns;
      for (std::size_t i = 0; i < columns.size(); ++i) {
        if (columns[i].offsets != nullptr) {
          columns[i].offsets += cut;
        } else {
          columns[i].ids = static_cast<const std::byte*>(columns[i].ids) + cut * columns[i].width;
          columns[i].count -= cut;
        }
      }
      const std::vector<float> rest = scores_of(scorer, {users.size - cut, columns});
      CHECK_EQUAL_IN(std::equal(rest.begin(), rest.end(), whole.begin() + static_cast<std::ptrdiff_t>(cut)), true,
                     level + " cut at " + std::to_string(cut));
    }
  });
}

TEST(scores_go_into_a_selection) {
  const Shape shape{.fields = kMixed};
  const RandomModel random(shape, 5);
  const RandomUsers users(shape.fields, 13000, 6);
  const Scorer scorer(random.model);
  TopK expected(100);
  expected.push(scores_of(scorer, users.all()), 1000);
  TopK top(100);
  int polls = 0;
  scorer.score_into(top, users.all(), 1000, {.threads = 2, .poll = [&] { ++polls; }});
  CHECK(top.finish().rows == expected.finish().rows);
  CHECK(top.finish().scores == expected.finish().scores);
  CHECK(polls > 0);
  CHECK_THROWS(
      std::runtime_error, "stop",
      scorer.score_into(top, users.all(), 20000, {.threads = 2, .poll = [] { throw std::runtime_error("stop"); }}));
}

TEST(small_fields_share_a_table_and_large_ones_are_pooled) {
  const Shape shape{.fields = {{false, 4}, {false, 100'000}, {true, 3}, {false, 5}, {false, 600}, {true, 700}}};
  const RandomModel random(shape, 7);
  const std::vector<int> tables = Scorer(random.model, {std::size_t{2} << 20}).tables();
  CHECK(tables[0] >= 0 && tables[0] == tables[3]);
  CHECK(tables[4] >= 0 && tables[4] != tables[0]);
  CHECK(tables[2] > std::max(tables[0], tables[4]));  // a list of rows, however small, shares nothing
  CHECK_EQUAL(tables[1], -1);
  CHECK_EQUAL(tables[5], -1);
}

TEST(no_users_are_no_scores) {
  const Shape shape{.fields = kMixed};
  const RandomModel random(shape, 8);
  const RandomUsers users(shape.fields, 0, 8);
  CHECK(scores_of(Scorer(random.model), users.all()).empty());
}

TEST(ids_beyond_a_field_are_refused) {
  const Shape shape{.fields = kMixed};
  const RandomModel random(shape, 9);
  RandomUsers users(shape.fields, 10'000, 9);
  const Scorer scorer(random.model);
  std::vector<float> scores(users.size);
  users.bytes[0][7000] = std::byte{3};
  CHECK_THROWS(InvalidInput, "user 7000 has id 3 of field 0, which has ids up to 2", scorer.score(users.all(), scores));
  users.bytes[0][7000] = std::byte{0};
  users.bytes[1][5] = std::byte{40};
  CHECK_THROWS(InvalidInput, "id 40 of field 1", scorer.score(users.all(), scores));
  users.bytes[1][5] = std::byte{0};
  users.offsets[4][10'000] = 1'000'000;
  CHECK_THROWS(InvalidInput, "offsets of column 4", scorer.score(users.all(), scores));
  users.offsets[4][10'000] = 0;
  CHECK_THROWS(InvalidInput, "offsets of column 4", scorer.score(users.all(), scores));
}

TEST(columns_that_do_not_fit_are_refused) {
  const Shape shape{.fields = {{false, 3}, {true, 4}}};
  const RandomModel random(shape, 10);
  const RandomUsers users(shape.fields, 10, 10);
  const Scorer scorer(random.model);
  std::vector<float> scores(10);
  const auto refused = [&](const std::string& why, auto change) {
    std::vector<ScorerColumn> columns = users.columns;
    change(columns);
    CHECK_THROWS(InvalidInput, why, scorer.score({10, columns}, scores));
  };
  refused("1 columns and the model has 2 fields", [](auto& columns) { columns.pop_back(); });
  refused("ids of 3 bytes", [](auto& columns) { columns[0].width = 3; });
  refused("9 ids for 10 users", [](auto& columns) { columns[0].count = 9; });
  refused("has no offsets", [](auto& columns) { columns[1].offsets = nullptr; });
  refused("has offsets", [&](auto& columns) { columns[0].offsets = columns[1].offsets; });
  CHECK_THROWS(InvalidInput, "threads must be at least 1", scorer.score(users.all(), scores, 0));
  CHECK_THROWS(InvalidInput, "room for 9 scores", scorer.score(users.all(), std::span(scores).first(9)));
}

TEST(models_that_do_not_fit_together_are_refused) {
  const RandomModel random({.fields = {{false, 3}, {true, 4}}}, 11);
  const auto refused = [&](const std::string& why, auto change) {
    ScorerModel model = random.model;
    change(model);
    CHECK_THROWS(InvalidInput, why, (void)Scorer{model});
  };
  refused("fields must be at least 1", [](auto& model) { model.fields.clear(); });
  refused("size must be at least 1", [](auto& model) { model.fields[0].size = 0; });
  refused("table has 112 numbers and must have 128", [](auto& model) { model.fields[0].size = 4; });
  refused("wide has", [](auto& model) { model.wide = model.wide.first(3); });
  refused("hidden must be at least 1", [](auto& model) { model.hidden.clear(); });
  refused("not between 1 and 16384", [](auto& model) { model.hidden[1] = 0; });
  refused("deeper_weights has 1 numbers and must have 2", [](auto& model) { model.hidden.push_back(3); });
  refused("critics_bias has 4 numbers", [](auto& model) { model.critics_bias = model.first_bias.first(4); });
  std::vector<float> bias(random.model.first_bias.begin(), random.model.first_bias.end());
  bias[3] = std::numeric_limits<float>::infinity();
  refused("first_bias holds a number that is not finite", [&](auto& model) { model.first_bias = bias; });
}

int main() { return check::run(); }
