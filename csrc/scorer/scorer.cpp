#include "lookalike/scorer.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "cpu/parallel.h"
#include "lookalike/error.h"
#include "scorer/pack.h"
#include "scorer/tiles.h"

namespace lookalike {

using detail::kMostPadding;
using detail::kMostUsers;
using detail::kTile;
using detail::Packed;
using detail::Tile;
using detail::TileFunction;
using detail::TilePool;

namespace {

// Users that a thread takes at once: some milliseconds of work, and scores that lie in L1 when they are pushed.
constexpr std::size_t kStretch = 128 * kTile;

[[noreturn]] void refuse_id(std::size_t field, std::size_t user, std::uint64_t id, std::uint32_t size) {
  throw InvalidInput("users", "user " + std::to_string(user) + " has id " + std::to_string(id) + " of field " +
                                  std::to_string(field) + ", which has ids up to " + std::to_string(size - 1) +
                                  ": encode users by the model's own schema");
}

template <class Id>
void check_ids(const void* from, std::size_t begin, std::size_t end, std::uint32_t size, std::size_t field,
               std::size_t user, bool multi) {
  const Id* ids = static_cast<const Id*>(from);
  Id most = 0;
  for (std::size_t i = begin; i < end; ++i) {
    most = std::max(most, ids[i]);
  }
  if (begin < end && most >= size) {
    const auto found = static_cast<std::size_t>(std::find(ids + begin, ids + end, most) - (ids + begin));
    refuse_id(field, user + (multi ? 0 : found), most, size);
  }
}

void check_ids(const ScorerColumn& column, std::size_t begin, std::size_t end, std::uint32_t size, std::size_t field,
               std::size_t user) {
  const bool multi = column.offsets != nullptr;
  switch (column.width) {
    case 1:
      return check_ids<std::uint8_t>(column.ids, begin, end, size, field, user, multi);
    case 2:
      return check_ids<std::uint16_t>(column.ids, begin, end, size, field, user, multi);
    default:
      return check_ids<std::uint32_t>(column.ids, begin, end, size, field, user, multi);
  }
}

template <class Id>
void add_ids(const void* from, std::size_t begin, std::size_t count, std::uint32_t stride, std::uint32_t* index) {
  const Id* ids = static_cast<const Id*>(from) + begin;
  if (stride == 1) {  // most fields, and the architecture's oldest processors multiply slowly
    for (std::size_t i = 0; i < count; ++i) {
      index[i] += ids[i];
    }
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    index[i] += ids[i] * stride;
  }
}

}  // namespace

struct Scorer::State {
  State(const ScorerModel& model, const ScorerOptions& options) : fields(model.fields), packed(model, options) {
    for (const detail::FieldPlan& plan : packed.plan.fields) {
      tables.push_back(plan.table);
    }
  }

  class Room;

  void check(const ScorerUsers& users) const;
  void check_stretch(const ScorerUsers& users, std::size_t begin, std::size_t end) const;
  void score(const ScorerUsers& users, std::size_t begin, std::size_t end, Room& room, float* scores) const;

  const std::vector<ScorerField> fields;
  const Packed packed;
  std::vector<int> tables;
};

/// What one thread needs to score a tile.
class Scorer::State::Room {
 public:
  explicit Room(const State& state)
      : index_(state.packed.kernel.num_tables * kTile),
        pools_(state.packed.plan.pools.size() + state.packed.plan.lists.size()),
        offsets_(pools_.size() * (kTile + 1)) {
    const detail::PackedModel& model = state.packed.kernel;
    std::size_t between = 0;
    for (std::size_t i = 0; i < std::size_t{model.num_layers} * model.num_experts; ++i) {
      between = std::max<std::size_t>(between, model.layers[i].outputs);
    }
    const std::size_t expert = model.expert_gate.outputs;
    const std::size_t critic = model.critic_gate.outputs;
    tile_.rows = make<const std::int16_t*>(kTile * (std::size_t{model.num_tables} + 1 + kMostPadding));
    *tile_.rows = model.bias;  // something to prefetch where nothing is looked up
    tile_.listed = make<detail::ListedRow>(kTile * model.num_lists * detail::kLongest);
    tile_.listed_sums = make<std::int16_t>(model.num_lists > 0 ? kTile * std::size_t{model.columns} : 0);
    tile_.long_means = make<std::int16_t>(kTile * std::size_t{model.pool_width});
    tile_.long_rows = make<std::int16_t>(model.num_lists * kTile * std::size_t{model.columns});
    tile_.pooled = make<std::int16_t>(model.num_pools > 0 ? kTile * std::size_t{model.pooled->inputs} : 0);
    for (std::int16_t*& first : tile_.first) {
      first = make<std::int16_t>(kMostUsers * std::max(model.expert_columns, 2 * model.gate_columns));
    }
    tile_.between[0] = make<std::int16_t>(kMostUsers * between);
    tile_.between[1] = make<std::int16_t>(kMostUsers * between);
    tile_.outputs = make<float>(kTile * (expert + critic));
    tile_.expert_weights = make<float>(kTile * expert);
    tile_.critic_weights = make<float>(kTile * critic);
    tile_.mixed = make<float>(kTile * model.mixed);
    tile_.wide = make<float>(kTile);
    tile_.scores = make<float>(kTile);
    tile_.index = index_.data();
    tile_.pools = pools_.data();
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  const Tile& fill(const State& state, const ScorerUsers& users, std::size_t begin, std::size_t count) {
    for (std::size_t table = 0; table < state.packed.kernel.num_tables; ++table) {
      const auto first_row = static_cast<std::uint32_t>(state.packed.plan.tables[table].first_row);
      std::fill_n(index_.begin() + static_cast<std::ptrdiff_t>(table * kTile), kTile, first_row);
    }
    for (std::size_t field = 0; field < users.columns.size(); ++field) {
      const detail::FieldPlan& plan = state.packed.plan.fields[field];
      const ScorerColumn& column = users.columns[field];
      if (plan.pool >= 0) {
        fill_pool(column, begin, count, static_cast<std::size_t>(plan.pool));
        continue;
      }
      std::uint32_t* index = index_.data() + static_cast<std::size_t>(plan.table) * kTile;
      switch (column.width) {
        case 1:
          add_ids<std::uint8_t>(column.ids, begin, count, plan.stride, index);
          break;
        case 2:
          add_ids<std::uint16_t>(column.ids, begin, count, plan.stride, index);
          break;
        default:
          add_ids<std::uint32_t>(column.ids, begin, count, plan.stride, index);
      }
    }
    return tile_;
  }

 private:
  // A register of the widest instruction set: rows of whole registers then begin on cache lines.
  struct alignas(64) Line {
    std::byte bytes[64];
  };

  /// Zeros that live as long as the room.
  template <class T>
  T* make(std::size_t count) {
    arrays_.emplace_back((count * sizeof(T) + sizeof(Line) - 1) / sizeof(Line));
    return reinterpret_cast<T*>(arrays_.back().data());
  }

  void fill_pool(const ScorerColumn& column, std::size_t begin, std::size_t count, std::size_t pool) {
    std::int64_t* offsets = offsets_.data() + pool * (kTile + 1);
    for (std::size_t i = 0; i <= kTile; ++i) {
      const std::size_t user = begin + std::min(i, count);  // those beyond have no ids
      offsets[i] = column.offsets != nullptr ? column.offsets[user] : static_cast<std::int64_t>(user);
    }
    pools_[pool] = {column.ids, offsets, column.width};
  }

  std::vector<std::uint32_t> index_;
  std::vector<TilePool> pools_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::vector<Line>> arrays_;
  Tile tile_{};
};

void Scorer::State::check(const ScorerUsers& users) const {
  if (users.columns.size() != fields.size()) {
    throw InvalidInput("users", "there are " + std::to_string(users.columns.size()) + " columns and the model has " +
                                    std::to_string(fields.size()) + " fields: give one column a field");
  }
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const ScorerColumn& column = users.columns[i];
    const std::string name = "column " + std::to_string(i);
    if (column.width != 1 && column.width != 2 && column.width != 4) {
      throw InvalidInput("users", name + " has ids of " + std::to_string(column.width) + " bytes: give 1, 2 or 4");
    }
    if ((column.offsets != nullptr) != fields[i].multi) {
      throw InvalidInput("users", name + (fields[i].multi ? " has no offsets and its field is multi-valued"
                                                          : " has offsets and its field is single-valued"));
    }
    if (!fields[i].multi && column.count != users.size) {
      throw InvalidInput(
          "users", name + " has " + std::to_string(column.count) + " ids for " + std::to_string(users.size) + " users");
    }
  }
}

/// Nothing is looked up that is not there, whatever the columns hold.
void Scorer::State::check_stretch(const ScorerUsers& users, std::size_t begin, std::size_t end) const {
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const ScorerColumn& column = users.columns[i];
    std::size_t first = begin;
    std::size_t last = end;
    if (column.offsets != nullptr) {
      const std::int64_t* offsets = column.offsets;
      if (offsets[begin] < 0 || !std::is_sorted(offsets + begin, offsets + end + 1) ||
          static_cast<std::uint64_t>(offsets[end]) > column.count) {
        throw InvalidInput("users", "the offsets of column " + std::to_string(i) + " do not ascend within its " +
                                        std::to_string(column.count) + " ids");
      }
      first = static_cast<std::size_t>(offsets[begin]);
      last = static_cast<std::size_t>(offsets[end]);
    }
    check_ids(column, first, last, fields[i].size, i, begin);
  }
}

void Scorer::State::score(const ScorerUsers& users, std::size_t begin, std::size_t end, Room& room,
                          float* scores) const {
  check_stretch(users, begin, end);
  const TileFunction score_tile = detail::choose(detail::kTiles);
  for (std::size_t user = begin; user < end; user += kTile) {
    const std::size_t count = std::min(kTile, end - user);
    const Tile& tile = room.fill(*this, users, user, count);
    score_tile(packed.kernel, tile);
    scores = std::copy_n(tile.scores, count, scores);
  }
}

Scorer::Scorer(const ScorerModel& model, const ScorerOptions& options) {
  detail::check_model(model);
  state_ = std::make_unique<State>(model, options);
}

Scorer::~Scorer() = default;
Scorer::Scorer(Scorer&&) noexcept = default;
Scorer& Scorer::operator=(Scorer&&) noexcept = default;

namespace {

/// work(begin, end) for stretches of users, on threads.
template <class Work>
void for_stretches(std::size_t users, unsigned threads, const std::function<void()>& poll, Work work) {
  if (threads == 0) {
    throw InvalidInput("threads", "threads must be at least 1");
  }
  const auto stretch = [&](std::size_t i) {
    work(i * kStretch, std::min(users, (i + 1) * kStretch));
    return true;
  };
  detail::parallel_for((users + kStretch - 1) / kStretch, threads, stretch, poll);
}

}  // namespace

void Scorer::score(const ScorerUsers& users, std::span<float> scores, unsigned threads) const {
  state_->check(users);
  if (scores.size() != users.size) {
    throw InvalidInput("scores", "there is room for " + std::to_string(scores.size()) + " scores of " +
                                     std::to_string(users.size) + " users");
  }
  for_stretches(users.size, threads, {}, [&](std::size_t begin, std::size_t end) {
    State::Room room(*state_);
    state_->score(users, begin, end, room, scores.data() + begin);
  });
}

void Scorer::score_into(TopK& top, const ScorerUsers& users, std::uint64_t first_row,
                        const PushOptions& options) const {
  state_->check(users);
  for_stretches(users.size, options.threads, options.poll, [&](std::size_t begin, std::size_t end) {
    State::Room room(*state_);
    std::array<float, kStretch> scores;
    state_->score(users, begin, end, room, scores.data());
    top.push({scores.data(), end - begin}, first_row + begin);
  });
}

const std::vector<int>& Scorer::tables() const noexcept { return state_->tables; }
std::size_t Scorer::table_bytes() const noexcept { return state_->packed.table_bytes; }

}  // namespace lookalike
