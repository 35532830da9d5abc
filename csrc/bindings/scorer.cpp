#include "lookalike/scorer.h"

#include <pybind11/stl.h>

#include <map>
#include <vector>

#include "bindings.h"

namespace lookalike::bindings {
namespace {

using Weights = std::map<std::string, py::object>;

/// The model that `shape` and `weights` (flat float32 arrays) describe, by the names of ScorerModel.
Scorer make(const std::vector<std::pair<bool, std::uint32_t>>& fields, const py::dict& shape, const Weights& weights,
            const std::vector<py::object>& deeper_weights, const std::vector<py::object>& deeper_biases,
            std::size_t fold_bytes) {
  const auto flat = [](const py::object& array, const std::string& name) {
    return elements<float>(array, name, "float32");
  };
  const auto weight = [&](const char* name) {
    const auto found = weights.find(name);
    if (found == weights.end()) {
      throw InvalidInput(name, std::string(name) + " is missing among the weights");
    }
    return flat(found->second, name);
  };
  ScorerModel model;
  for (const auto& [multi, size] : fields) {
    model.fields.push_back({multi, size});
  }
  model.dim = shape["dim"].cast<std::uint32_t>();
  model.num_experts = shape["num_experts"].cast<std::uint32_t>();
  model.num_critics = shape["num_critics"].cast<std::uint32_t>();
  model.gate_hidden = shape["gate_hidden"].cast<std::uint32_t>();
  model.hidden = shape["hidden"].cast<std::vector<std::uint32_t>>();
  model.expert_scale = shape["expert_scale"].cast<float>();
  model.critic_scale = shape["critic_scale"].cast<float>();
  model.table = weight("table");
  model.wide = weight("wide");
  model.first_weight = weight("first_weight");
  model.first_bias = weight("first_bias");
  model.expert_gate_weight = weight("expert_gate_weight");
  model.expert_gate_bias = weight("expert_gate_bias");
  model.critic_gate_weight = weight("critic_gate_weight");
  model.critic_gate_bias = weight("critic_gate_bias");
  model.critics_weight = weight("critics_weight");
  model.critics_bias = weight("critics_bias");
  for (const py::object& layer : deeper_weights) {
    model.deeper_weights.push_back(flat(layer, "deeper_weights"));
  }
  for (const py::object& layer : deeper_biases) {
    model.deeper_biases.push_back(flat(layer, "deeper_biases"));
  }
  const py::gil_scoped_release released;
  return Scorer(model, {fold_bytes});
}

ScorerColumn column_of(const py::object& ids, const py::object& offsets, std::size_t users) {
  ScorerColumn column;
  const auto take = [&column](const auto& values, std::uint8_t width) {
    column.ids = values.data();
    column.width = width;
    column.count = values.size();
  };
  if (py::isinstance<py::array_t<std::uint8_t>>(ids)) {
    take(elements<std::uint8_t>(ids, "users", "uint8"), 1);
  } else if (py::isinstance<py::array_t<std::uint16_t>>(ids)) {
    take(elements<std::uint16_t>(ids, "users", "uint16"), 2);
  } else {
    take(elements<std::uint32_t>(ids, "users", "uint32"), 4);
  }
  if (!offsets.is_none()) {
    const auto values = elements<std::int64_t>(offsets, "users", "int64");
    if (values.size() != users + 1) {
      throw InvalidInput("users", "there are " + std::to_string(values.size()) + " offsets for " +
                                      std::to_string(users) + " users: give one more than users");
    }
    column.offsets = values.data();
  }
  return column;
}

/// Ids of each field, and offsets or None.
using Columns = std::vector<std::pair<py::object, py::object>>;

std::vector<ScorerColumn> columns_of(const Columns& columns, std::size_t users) {
  std::vector<ScorerColumn> taken;
  for (const auto& [ids, offsets] : columns) {
    taken.push_back(column_of(ids, offsets, users));
  }
  return taken;
}

py::array_t<float> score(const Scorer& self, std::size_t users, const Columns& columns, unsigned threads) {
  const std::vector<ScorerColumn> taken = columns_of(columns, users);
  Buffer<float> scores(users);
  {
    const py::gil_scoped_release released;
    self.score({users, taken}, scores, threads);
  }
  return to_array(std::move(scores));
}

void score_into(const Scorer& self, PyTopK& top, std::size_t users, const Columns& columns, std::uint64_t first_row,
                unsigned threads) {
  const std::vector<ScorerColumn> taken = columns_of(columns, users);
  const PushOptions options{threads, signal_poll()};
  const py::gil_scoped_release released;
  self.score_into(top.top, {users, taken}, first_row, options);
}

}  // namespace

void bind_scorer(py::module_& module) {
  py::class_<Scorer>(module, "Scorer")
      .def(py::init(&make), py::arg("fields"), py::arg("shape"), py::arg("weights"), py::arg("deeper_weights"),
           py::arg("deeper_biases"), py::arg("fold_bytes"))
      .def("score", &score, py::arg("users"), py::arg("columns"), py::arg("threads"))
      .def("score_into", &score_into, py::arg("top"), py::arg("users"), py::arg("columns"), py::arg("first_row"),
           py::arg("threads"))
      .def_property_readonly("tables", &Scorer::tables)
      .def_property_readonly("table_bytes", &Scorer::table_bytes);
}

}  // namespace lookalike::bindings
