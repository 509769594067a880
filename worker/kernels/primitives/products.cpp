// Matrix products: one matrix, or a stack of which every row takes its own (mixtures of experts).
#include <atomic>

#include "arrays.h"

namespace paceline {

namespace {
std::atomic<pk_loops> loops_of_new_operations{PK_FASTER};
}

void choose_loops(pk_loops loops) { loops_of_new_operations = loops; }
pk_loops chosen_loops() { return loops_of_new_operations; }

pk_matrix as_matrix(const Packing& packing, const array& codes, const array* scales, const array* biases) {
  pk_matrix w{};
  w.codes = codes.data<void>();
  w.bits = packing.bits;
  w.group_size = packing.group_size;
  w.rows = codes.shape(-2);
  w.columns = count_columns(codes, packing.bits);
  w.scales = scales ? scales->data<void>() : nullptr;
  w.biases = biases ? biases->data<void>() : nullptr;
  w.dtype = dtype_of(scales ? *scales : codes);
  return w;
}

namespace {

pk_matrix matrix_of(const Packing& packing, const Arrays& in) {
  return as_matrix(packing, in[1], packing.bits ? &in[2] : nullptr, packing.bits ? &in[3] : nullptr);
}

class Multiply : public CpuPrimitive {
 public:
  Multiply(Packing packing, bool fast) : packing_(packing), fast_(fast), loops_(chosen_loops()) {}
  const char* name() const override { return "PacelineMultiply"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const pk_matrix w = matrix_of(packing_, in);
    const float* x = in[0].data<float>();
    float* y = allocate(out[0]);
    const int inputs = static_cast<int>(in[0].size() / w.columns);
    run([=, fast = fast_, loops = loops_] {
      const size_t stride = w.rows;
      pk_multiply(x, inputs, &w, 1, &y, &stride, fast, loops);
    });
  }

  std::vector<mx::Shape> output_shapes(const Arrays& in) override {
    auto shape = in[0].shape();
    shape.back() = in[1].shape(-2);
    return {shape};
  }

 private:
  Packing packing_;
  bool fast_;
  pk_loops loops_;
};

class MultiplyGathered : public CpuPrimitive {
 public:
  MultiplyGathered(Packing packing, bool fast, std::vector<int> x_rows)
      : packing_(packing), fast_(fast), loops_(chosen_loops()), x_rows_(std::move(x_rows)) {}
  const char* name() const override { return "PacelineMultiplyGathered"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const pk_matrix stack = matrix_of(packing_, in);
    const float* x = in[0].data<float>();
    const int* experts = in.back().data<int>();
    float* y = allocate(out[0]);
    run([=, fast = fast_, loops = loops_, x_rows = x_rows_, count = in[1].shape(0)] {
      pk_multiply_gathered(x, x_rows.data(), &stack, experts, count, static_cast<int>(x_rows.size()), y, fast, loops);
    });
  }

 private:
  Packing packing_;
  bool fast_;
  pk_loops loops_;
  std::vector<int> x_rows_;
};

Arrays gather_inputs(const array& x, const array& codes, const std::optional<array>& scales, const std::optional<array>& biases) {
  Arrays inputs{in_rows(x), in_rows(codes)};
  if (scales) {
    require(biases.has_value() && scales->dtype() == biases->dtype(), "scales and biases must come together, of one type");
    inputs.push_back(in_rows(*scales));
    inputs.push_back(in_rows(*biases));
  }
  return inputs;
}

// Which row of x each place of `shape` reads, x's leading dimensions being broadcast to it.
std::vector<int> broadcast_rows(const mx::Shape& from, const mx::Shape& shape) {
  std::vector<int> rows(1, 0);
  int stride = 1;
  for (int i = static_cast<int>(shape.size()) - 1, j = static_cast<int>(from.size()) - 1; i >= 0; i--, j--) {
    const int step = j >= 0 && from[j] != 1 ? stride : 0;
    std::vector<int> outer;
    outer.reserve(rows.size() * shape[i]);
    for (int k = 0; k < shape[i]; k++)
      for (int row : rows) outer.push_back(k * step + row);
    rows = std::move(outer);
    if (j >= 0) stride *= from[j];
  }
  return rows;
}

}  // namespace

array multiply(const array& x, const array& codes, const std::optional<array>& scales, const std::optional<array>& biases,
               int group_size, int bits, bool fast) {
  require_float32(x);
  const int columns = count_columns(codes, bits);
  require(codes.ndim() == 2 && x.ndim() > 0 && x.shape(-1) == columns, "the input's last dimension must be the matrix's columns");
  auto shape = x.shape();
  shape.back() = codes.shape(0);
  return make<Multiply>(shape, gather_inputs(x, codes, scales, biases), Packing{group_size, bits}, fast);
}

// x [..., 1, columns], experts [...] int32 or uint32, the dots broadcast to each other; gives [..., 1, rows].
array multiply_gathered(const array& x, const array& codes, const std::optional<array>& scales, const std::optional<array>& biases,
                        const array& experts, int group_size, int bits, bool fast) {
  require_float32(x);
  const int columns = count_columns(codes, bits);
  require(codes.ndim() == 3 && x.ndim() >= 2 && x.shape(-1) == columns && x.shape(-2) == 1, "gathered products take one row at a time");
  const mx::Shape leading(x.shape().begin(), x.shape().end() - 2);
  const mx::Shape places = mx::broadcast_shapes(leading, experts.shape());
  mx::Shape shape = places;
  shape.push_back(1);
  shape.push_back(codes.shape(1));
  Arrays inputs = gather_inputs(x, codes, scales, biases);
  inputs.push_back(mx::contiguous(mx::broadcast_to(mx::astype(experts, mx::int32), places)));
  return make<MultiplyGathered>(shape, std::move(inputs), Packing{group_size, bits}, fast, broadcast_rows(leading, places));
}

}  // namespace paceline
