// Norms, gates and rotary position embeddings.
#include <cmath>
#include <map>

#include "arrays.h"
#include "rotation.h"

namespace paceline {

namespace {

constexpr int kBlock = 64;

class RmsNorm : public CpuPrimitive {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}
  const char* name() const override { return "PacelineRmsNorm"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const float* x = in[0].data<float>();
    const float* weight = in.size() > 1 ? in[1].data<float>() : nullptr;
    float* y = allocate(out[0]);
    const int length = in[0].shape(-1), rows = static_cast<int>(in[0].size() / length);
    run([=, eps = eps_] { pk_rms_norm(x, weight, eps, y, rows, length); });
  }

  std::vector<mx::Shape> output_shapes(const Arrays& in) override { return {in[0].shape()}; }

 private:
  float eps_;
};

class LayerNorm : public CpuPrimitive {
 public:
  LayerNorm(float eps, bool has_weight, bool has_bias) : eps_(eps), has_weight_(has_weight), has_bias_(has_bias) {}
  const char* name() const override { return "PacelineLayerNorm"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const float* x = in[0].data<float>();
    const float* weight = has_weight_ ? in[1].data<float>() : nullptr;
    const float* bias = has_bias_ ? in.back().data<float>() : nullptr;
    float* y = allocate(out[0]);
    const int length = in[0].shape(-1), rows = static_cast<int>(in[0].size() / length);
    run([=, eps = eps_] {
      for (int row = 0; row < rows; row++)
        pk_current_isa()->layer_norm(x + static_cast<size_t>(row) * length, weight, bias, eps, y + static_cast<size_t>(row) * length,
                                     length);
    });
  }

  std::vector<mx::Shape> output_shapes(const Arrays& in) override { return {in[0].shape()}; }

 private:
  float eps_;
  bool has_weight_, has_bias_;
};

class Gate : public CpuPrimitive {
 public:
  explicit Gate(int kind) : kind_(kind) {}
  const char* name() const override { return "PacelineGate"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const float *gate = in[0].data<float>(), *up = in[1].data<float>();
    float* y = allocate(out[0]);
    run([=, size = in[0].size(), kind = kind_] { pk_gate(gate, up, y, size, kind); });
  }

  std::vector<mx::Shape> output_shapes(const Arrays& in) override { return {in[0].shape()}; }

 private:
  int kind_;
};

// x [batch, heads, tokens, head_dim] with any strides but the last; offsets: one int32, or one per sequence.
class Rotate : public CpuPrimitive {
 public:
  Rotate(std::shared_ptr<RotationTable> table, bool is_traditional) : table_(std::move(table)), is_traditional_(is_traditional) {}
  const char* name() const override { return "PacelineRotate"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const array x = side_by_side(in[0]);
    const float* from = x.data<float>();
    const int* offsets = in[1].data<int>();
    float* to = allocate(out[0]);
    const int batch = x.shape(0), heads = x.shape(1), tokens = x.shape(2), head_dim = x.shape(3);
    const int64_t by_batch = x.strides(0), by_head = x.strides(1), by_token = x.strides(2);
    const int step = in[1].size() == 1 ? 0 : 1;
    run([=, table = table_, is_traditional = is_traditional_] {
      for (int b = 0; b < batch; b++)
        for (int t = 0; t < tokens; t++) {
          const float* angles = table->at(offsets[b * step] + t);
          for (int h = 0; h < heads; h++)
            pk_current_isa()->rotate(from + b * by_batch + h * by_head + t * by_token, angles, table->dims(), head_dim, is_traditional,
                                     to + ((static_cast<int64_t>(b) * heads + h) * tokens + t) * head_dim);
        }
    });
  }

 private:
  std::shared_ptr<RotationTable> table_;
  bool is_traditional_;
};

array widen(const array& a) { return in_rows(a.dtype() == mx::float32 ? a : mx::astype(a, mx::float32)); }

}  // namespace

const float* RotationTable::at(int position) {
  // Positions before the start are those of padding: what is computed for them is never looked at.
  position = position < 0 ? 0 : position;
  std::lock_guard<std::mutex> lock(mutex_);
  auto& block = blocks_[position / kBlock];
  if (block.empty()) block = make_block(position / kBlock);
  return block.data() + static_cast<size_t>(position % kBlock) * dims();
}

std::vector<float> RotationTable::make_block(int block) const {
  const size_t half = frequencies_.size();
  std::vector<float> values(kBlock * 2 * half);
  for (int p = 0; p < kBlock; p++)
    for (size_t i = 0; i < half; i++) {
      const float angle = static_cast<float>(block * kBlock + p) * scale_ * frequencies_[i];
      values[p * 2 * half + i] = std::cos(angle);
      values[p * 2 * half + half + i] = std::sin(angle);
    }
  return values;
}

std::shared_ptr<RotationTable> RotationTable::find(const std::vector<float>& frequencies, float scale) {
  static std::mutex mutex;
  static auto* tables = new std::map<std::pair<std::vector<float>, float>, std::shared_ptr<RotationTable>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& table = (*tables)[{frequencies, scale}];
  if (!table) table = std::make_shared<RotationTable>(frequencies, scale);
  return table;
}

array rms_norm(const array& x, const std::optional<array>& weight, float eps) {
  require_float32(x);
  require(!weight || (weight->ndim() == 1 && weight->shape(0) == x.shape(-1)), "the weight must have the input's last dimension");
  Arrays inputs{in_rows(x)};
  if (weight) inputs.push_back(widen(*weight));
  return make<RmsNorm>(x.shape(), std::move(inputs), eps);
}

array layer_norm(const array& x, const std::optional<array>& weight, const std::optional<array>& bias, float eps) {
  require_float32(x);
  Arrays inputs{in_rows(x)};
  if (weight) inputs.push_back(widen(*weight));
  if (bias) inputs.push_back(widen(*bias));
  return make<LayerNorm>(x.shape(), std::move(inputs), eps, weight.has_value(), bias.has_value());
}

array gate(const array& gate, const array& up, int kind) {
  require_float32(gate);
  require_float32(up);
  require(gate.shape() == up.shape(), "gate and input must have one shape");
  return make<Gate>(gate.shape(), {in_rows(gate), in_rows(up)}, kind);
}

// frequencies [dims / 2] float32, evaluated; offsets int32 of one value or one per sequence.
array rotate(const array& x, int dims, bool is_traditional, const array& frequencies, float scale, const array& offsets) {
  require_float32(x);
  require(x.ndim() == 4 && dims <= x.shape(3) && frequencies.size() == static_cast<size_t>(dims / 2) && frequencies.is_available(),
          "rotary embeddings need [batch, heads, tokens, head_dim] and one frequency per pair");
  const float* values = frequencies.data<float>();
  auto table = RotationTable::find(std::vector<float>(values, values + dims / 2), scale);
  return make<Rotate>(x.shape(), {x, in_rows(offsets)}, table, is_traditional);
}

}  // namespace paceline
