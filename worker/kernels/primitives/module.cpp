// The Python module paceline_kernels._native.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "layers.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paceline;

namespace {

std::vector<std::string> list_instruction_sets() {
  std::vector<std::string> names;
  for (int i = 0; pk_list_isas(i); i++) names.emplace_back(pk_list_isas(i)->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  if (!pk_use_isa(name.c_str())) throw std::invalid_argument("this processor has no " + name);
}

void add_operations(nb::module_& m) {
  m.def("multiply", &multiply, "x"_a, "codes"_a, "scales"_a.none(), "biases"_a.none(), "group_size"_a, "bits"_a, "fast"_a);
  m.def("multiply_gathered", &multiply_gathered, "x"_a, "codes"_a, "scales"_a.none(), "biases"_a.none(), "experts"_a, "group_size"_a,
        "bits"_a, "fast"_a);
  m.def("rms_norm", &rms_norm, "x"_a, "weight"_a.none(), "eps"_a);
  m.def("layer_norm", &layer_norm, "x"_a, "weight"_a.none(), "bias"_a.none(), "eps"_a);
  m.def("gate", &gate, "gate"_a, "up"_a, "kind"_a);
  m.def("rotate", &rotate, "x"_a, "dims"_a, "is_traditional"_a, "frequencies"_a, "scale"_a, "offsets"_a);
  m.def("attend", &attend, "q"_a, "k"_a, "v"_a, "scale"_a, "is_causal"_a, "mask"_a.none(), "sinks"_a.none());
}

// Attributes of mlx-lm's KVCache.
struct Names {
  nb::object keys = intern("keys"), values = intern("values"), offset = intern("offset"), step = intern("step");

  static const Names& get() {
    static const auto* names = new Names; /* not destroyed: Python may be gone by then */
    return *names;
  }

 private:
  static nb::object intern(const char* name) { return nb::steal(PyUnicode_InternFromString(name)); }
};

// One of mlx-lm's KV caches. Whether somebody else holds its keys or values is known by counts of references, as MLX knows what it may
// write to: of the Python object, of the array that it stands for, of its memory.
class PythonCache {
 public:
  PythonCache(nb::handle cache, int tokens)
      : cache_(nb::borrow(cache)), keys_(nb::getattr(cache, Names::get().keys)), values_(nb::getattr(cache, Names::get().values)),
        tokens_(tokens) {}

  void list_arrays(std::vector<array*>& arrays) const {
    for (const nb::object* object : {&keys_, &values_})
      if (!object->is_none()) arrays.push_back(nb::cast<array*>(*object));
  }
  LayerCache read() const {
    const Names& names = Names::get();
    return {read(keys_), read(values_), nb::cast<int>(nb::getattr(cache_, names.offset)), tokens_,
            nb::cast<int>(nb::getattr(cache_, names.step))};
  }
  void write(LayerCache& after) const {
    const Names& names = Names::get();
    if (after.keys.next) nb::setattr(cache_, names.keys, nb::cast(std::move(*after.keys.next)));
    if (after.values.next) nb::setattr(cache_, names.values, nb::cast(std::move(*after.values.next)));
    nb::setattr(cache_, names.offset, nb::int_(after.offset + after.tokens));
  }

 private:
  static constexpr Py_ssize_t kOwnReferences = 2; /* the cache's and ours */

  static LayerCache::Buffer read(const nb::object& object) {
    return {nb::cast<array*>(object), Py_REFCNT(object.ptr()) > kOwnReferences, std::nullopt};
  }

  nb::object cache_, keys_, values_;
  int tokens_;
};

using Entries = std::vector<std::vector<std::pair<nb::object, int>>>;

array apply(const LayerRun& run, const array& x, int first, const Entries& entries) {
  std::vector<std::vector<PythonCache>> caches;
  std::vector<array*> arrays;
  for (const auto& layer : entries) {
    caches.emplace_back().reserve(layer.size());
    for (const auto& [cache, tokens] : layer) caches.back().emplace_back(cache, tokens).list_arrays(arrays);
  }
  {
    nb::gil_scoped_release others_go_on;  // buffers that are not computed yet are waited for
    make_available(arrays);
  }
  std::vector<std::vector<LayerCache>> states;
  for (const auto& layer : caches) {
    states.emplace_back().reserve(layer.size());
    for (const auto& cache : layer) states.back().push_back(cache.read());
  }
  const array y = run.apply(x, first, states);
  for (size_t i = 0; i < caches.size(); i++)
    for (size_t j = 0; j < caches[i].size(); j++) caches[i][j].write(states[i][j]);
  return y;
}

bool is_float32(nb::handle buffer, int batch) {
  if (!nb::isinstance<array>(buffer)) return false;
  const array& a = nb::cast<array&>(buffer);
  return a.dtype() == mx::float32 && a.ndim() == 4 && a.shape(0) == batch;
}

// Whether caches are of this class itself, each another one, and hold nothing yet or float32 keys and values of this batch.
bool are_plain(const nb::list& caches, nb::handle kind, int batch) {
  const Names& names = Names::get();
  std::vector<PyObject*> seen;
  for (nb::handle cache : caches) {
    if (!cache.type().is(kind)) return false;
    const nb::object keys = nb::getattr(cache, names.keys), values = nb::getattr(cache, names.values);
    if (!(keys.is_none() && values.is_none()) && !(is_float32(keys, batch) && is_float32(values, batch))) return false;
    seen.push_back(cache.ptr());
  }
  std::sort(seen.begin(), seen.end());
  return std::adjacent_find(seen.begin(), seen.end()) == seen.end();
}

void add_layers(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const array&, std::optional<array>, std::optional<array>, std::optional<array>, int, int>(), "codes"_a,
           "scales"_a.none(), "biases"_a.none(), "offset"_a.none(), "group_size"_a, "bits"_a);
  nb::class_<Norm>(m, "Norm").def(nb::init<const array&, float>(), "weight"_a, "eps"_a);
  nb::class_<AttentionHalf>(m, "AttentionHalf");
  m.def(
      "make_attention_half",
      [](const Norm& norm, std::vector<Matrix> qkv, const Matrix& output, std::optional<Norm> query_norm, std::optional<Norm> key_norm,
         int heads, int kv_heads, int head_dim, float scale, const array& frequencies, float rope_scale, bool is_traditional, bool fast,
         std::optional<Group> group) {
        return std::make_shared<AttentionHalf>(norm, std::move(qkv), output, query_norm, key_norm, Heads{heads, kv_heads, head_dim, scale},
                                               frequencies, rope_scale, is_traditional, fast, std::move(group));
      },
      "norm"_a, "qkv"_a, "output"_a, "query_norm"_a.none(), "key_norm"_a.none(), "heads"_a, "kv_heads"_a, "head_dim"_a, "scale"_a,
      "frequencies"_a, "rope_scale"_a, "is_traditional"_a, "fast"_a, "group"_a.none());
  nb::class_<MlpHalf>(m, "MlpHalf");
  m.def(
      "make_mlp_half",
      [](const Norm& norm, const Matrix& gate, const Matrix& up, const Matrix& down, int kind, bool fast,
         std::optional<Group> group) { return std::make_shared<MlpHalf>(norm, gate, up, down, kind, fast, std::move(group)); },
      "norm"_a, "gate"_a, "up"_a, "down"_a, "kind"_a, "fast"_a, "group"_a.none());
  nb::class_<LayerRun>(m, "LayerRun").def("apply", &apply, "x"_a, "first"_a, "caches"_a);
  m.def("are_plain", &are_plain, "caches"_a, "kind"_a, "batch"_a);
  m.def(
      "make_layer_run",
      [](const std::vector<std::pair<std::shared_ptr<AttentionHalf>, std::shared_ptr<MlpHalf>>>& halves) {
        std::vector<Layer> layers;
        for (const auto& [attention, mlp] : halves) layers.push_back({attention, mlp});
        return std::make_shared<LayerRun>(std::move(layers));
      },
      "halves"_a);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::module_::import_("mlx.core");
  m.attr("built_for_mlx") = PACELINE_MLX_VERSION;
  m.def("list_instruction_sets", &list_instruction_sets);
  m.def("instruction_set", [] { return std::string(pk_current_isa()->name); });
  m.def("vector_floats", [] { return pk_current_isa()->vector_floats; });
  m.def("has_fast", [] { return pk_current_isa()->has_fast; });
  m.def("use_instruction_set", &use_instruction_set, "name"_a);
  m.def("choose_loops", [](int loops) { choose_loops(static_cast<pk_loops>(loops)); }, "loops"_a);
  m.def("set_threads", &pk_set_threads, "count"_a);
  m.def("get_threads", &pk_get_threads);
  add_operations(m);
  add_layers(m);
}
