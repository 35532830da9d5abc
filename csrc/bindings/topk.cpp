#include "lookalike/topk.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "bindings.h"

namespace lookalike::bindings {
namespace {

using Released = py::call_guard<py::gil_scoped_release>;

TopKOptions make_options(const std::optional<std::uint64_t>& num_rows, const py::object& skip, bool skip_nan,
                         bool distribution) {
  TopKOptions options;
  options.num_rows = num_rows.value_or(options.num_rows);
  options.nan = skip_nan ? NanPolicy::kSkip : NanPolicy::kRaise;
  options.distribution = distribution;
  if (!skip.is_none()) {
    options.skip = elements<std::uint8_t>(skip, "skip", "uint8");
  }
  return options;
}

std::unique_ptr<PyTopK> make(std::uint64_t k, const std::optional<std::uint64_t>& num_rows, const py::object& skip,
                             bool skip_nan, bool distribution) {
  return std::make_unique<PyTopK>(PyTopK{skip, TopK(k, make_options(num_rows, skip, skip_nan, distribution))});
}

std::unique_ptr<PyTopK> load(const py::buffer& partial, const std::optional<std::uint64_t>& num_rows,
                             const py::object& skip, bool skip_nan, bool distribution) {
  const TopKOptions options = make_options(num_rows, skip, skip_nan, distribution);
  const py::buffer_info bytes = partial.request();
  if (bytes.ndim != 1 || bytes.itemsize != 1 || bytes.strides[0] != 1) {
    throw InvalidInput("partial", "partial must be contiguous bytes: give what save returned");
  }
  const std::span span(static_cast<const std::byte*>(bytes.ptr), static_cast<std::size_t>(bytes.size));
  const auto load_released = [&] {
    const py::gil_scoped_release released;
    return TopK::load(span, options);
  };
  return std::make_unique<PyTopK>(PyTopK{skip, load_released()});
}

py::bytes save(PyTopK& self) {
  std::vector<std::byte> bytes;
  {
    const py::gil_scoped_release released;
    bytes = self.top.save();
  }
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

py::tuple distribution(PyTopK& self) {
  Distribution found;
  {
    const py::gil_scoped_release released;
    found = self.top.distribution();
  }
  return py::make_tuple(to_array(std::move(found.scores)), found.population);
}

void push(PyTopK& self, const py::object& scores, std::uint64_t first_row, unsigned threads) {
  // Over before a first poll is due.
  constexpr std::size_t kShort = std::size_t{1} << 20;
  const auto values = elements<float>(scores, "scores", "float32");
  PushOptions options{threads, {}};
  if (values.size() > kShort) {
    options.poll = signal_poll();
  }
  const py::gil_scoped_release released;
  self.top.push(values, first_row, options);
}

py::tuple finish(PyTopK& self, bool sorted, unsigned threads) {
  Selection selection;
  {
    const py::gil_scoped_release released;
    selection = self.top.finish(sorted, threads);
  }
  return py::make_tuple(to_array(std::move(selection.rows)), to_array(std::move(selection.scores)));
}

std::optional<std::tuple<float, std::uint64_t, std::uint64_t>> cutoff(PyTopK& self) {
  const auto found = self.top.cutoff();
  if (!found) {
    return std::nullopt;
  }
  return std::make_tuple(found->score, found->tied, found->selected);
}

void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) {
    throw py::error_already_set();
  }
}

}  // namespace

std::function<void()> signal_poll() {
  const py::object main_thread = py::module_::import("threading").attr("main_thread")();
  const bool on_main_thread = main_thread.attr("ident").cast<unsigned long>() == PyThread_get_thread_ident();
  return on_main_thread ? check_signals : std::function<void()>();
}

void bind_topk(py::module_& module) {
  py::class_<PyTopK>(module, "TopK")
      .def(py::init(&make), py::arg("k"), py::arg("num_rows"), py::arg("skip"), py::arg("skip_nan"),
           py::arg("distribution"))
      .def_static("load", &load, py::arg("partial"), py::arg("num_rows"), py::arg("skip"), py::arg("skip_nan"),
                  py::arg("distribution"))
      .def("save", &save)
      .def("distribution", &distribution)
      .def("push", &push, py::arg("scores").noconvert(), py::arg("first_row"), py::arg("threads"))
      .def(
          "merge", [](PyTopK& self, const PyTopK& other) { self.top.merge(other.top); }, py::arg("other"), Released())
      .def("finish", &finish, py::arg("sorted"), py::arg("threads"))
      .def("cutoff", &cutoff, Released())
      .def_property_readonly("k", [](const PyTopK& self) { return self.top.k(); })
      .def_property_readonly("threshold", [](const PyTopK& self) { return self.top.threshold(); })
      // These wait for a compaction under way.
      .def_property_readonly("rows_seen",
                             py::cpp_function([](const PyTopK& self) { return self.top.rows_seen(); }, Released()))
      .def_property_readonly("rows_skipped",
                             py::cpp_function([](const PyTopK& self) { return self.top.rows_skipped(); }, Released()))
      .def_property_readonly("nan_count",
                             py::cpp_function([](const PyTopK& self) { return self.top.nan_count(); }, Released()));
}

}  // namespace lookalike::bindings
