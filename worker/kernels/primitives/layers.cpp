#include "layers.h"

#include <array>
#include <cstring>

namespace paceline {

namespace {

// out = work(inputs), where the work needs only pointers.
template <class Work>
class Step : public CpuPrimitive {
 public:
  explicit Step(Work work) : work_(std::move(work)) {}
  const char* name() const override { return "PacelineLayerStep"; }
  void eval_cpu(const Arrays& in, Arrays& out) override {
    float* y = allocate(out[0]);
    run([work = work_, in, y] { work(in, y); });
  }

 private:
  Work work_;
};

template <class Work>
array make_step(mx::Shape shape, Arrays inputs, Work work) {
  return make<Step<Work>>(std::move(shape), std::move(inputs), std::move(work));
}

// Copies heads [first_head, first_head + kv heads) of the projection into the cache at `offset`.
class WriteCache : public CpuPrimitive {
 public:
  WriteCache(int first_head, int offset) : first_head_(first_head), offset_(offset) {}
  const char* name() const override { return "PacelineWriteCache"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const array &buffer = in[0], &projected = in[1];
    const bool is_free = buffer.is_donatable() && buffer.flags().row_contiguous;
    const float* before = is_free ? nullptr : buffer.data<float>();
    if (is_free)
      out[0].copy_shared_buffer(buffer);
    else
      out[0].set_data(mx::allocator::malloc(out[0].nbytes()));
    float* to = out[0].data<float>();
    const float* from = projected.data<float>();
    const int batch = buffer.shape(0), heads = buffer.shape(1), capacity = buffer.shape(2), dim = buffer.shape(3);
    const int tokens = projected.shape(1), width = projected.shape(2);
    run([=, first = first_head_, offset = offset_, bytes = out[0].nbytes()] {
      if (before) std::memcpy(to, before, bytes);
      for (int b = 0; b < batch; b++)
        for (int t = 0; t < tokens; t++)
          for (int h = 0; h < heads; h++)
            std::memcpy(to + ((static_cast<size_t>(b) * heads + h) * capacity + offset + t) * dim,
                        from + (static_cast<size_t>(b) * tokens + t) * width + (first + h) * dim, dim * sizeof(float));
    });
  }

 private:
  int first_head_, offset_;
};

array evaluated(const array& a) {
  require(a.is_available() && a.flags().row_contiguous, "weights of a layer must be evaluated and in row order");
  return a;
}

}  // namespace

Matrix::Matrix(const array& codes, const std::optional<array>& scales, const std::optional<array>& biases,
               const std::optional<array>& offset, int group_size, int bits)
    : arrays_{evaluated(codes)}, offset_(offset) {
  if (bits) {
    arrays_.push_back(evaluated(scales.value()));
    arrays_.push_back(evaluated(biases.value()));
    require(scales->dtype() == biases->dtype(), "scales and biases must be of one type");
  }
  if (offset) require_float32(evaluated(*offset));
  weights_ = as_matrix({group_size, bits}, arrays_[0], bits ? &arrays_[1] : nullptr, bits ? &arrays_[2] : nullptr);
}

void Matrix::add_offset(float* y, size_t stride, int count) const {
  if (!offset_) return;
  for (int row = 0; row < count; row++) pk_add(y + row * stride, offset_->data<float>(), y + row * stride, rows());
}

Norm::Norm(const array& weight, float eps) : eps(eps), weight_(evaluated(weight)) { require_float32(weight); }

AttentionHalf::AttentionHalf(Norm norm, std::vector<Matrix> qkv, Matrix output, std::optional<Norm> query_norm, std::optional<Norm> key_norm,
                             Heads heads, const array& frequencies, float rope_scale, bool is_traditional, bool fast)
    : norm_(std::move(norm)), qkv_(std::move(qkv)), output_(std::move(output)), query_norm_(std::move(query_norm)),
      key_norm_(std::move(key_norm)), heads_(heads), is_traditional_(is_traditional), fast_(fast) {
  require(qkv_.size() == 3 && qkv_[0].rows() == heads.query * heads.dim && qkv_[1].rows() == heads.kv * heads.dim &&
              qkv_[2].rows() == heads.kv * heads.dim && heads.query % heads.kv == 0 && heads.dim % pk_current_isa()->vector_floats == 0,
          "projections must give whole heads");
  for (const auto& w : qkv_)
    require(w.columns() == norm_.length() && w.weights().bits == qkv_[0].weights().bits &&
                w.weights().group_size == qkv_[0].weights().group_size,
            "projections must be packed alike");
  require(output_.columns() == heads.query * heads.dim && output_.rows() == norm_.length(), "the output must give the input's width");
  const float* values = evaluated(frequencies).data<float>();
  table_ = RotationTable::find(std::vector<float>(values, values + frequencies.size()), rope_scale);
  require(table_->dims() <= heads.dim, "rotation must stay inside a head");
}

array AttentionHalf::project(const array& x, int offset) {
  const int batch = x.shape(0), tokens = x.shape(1);
  return make_step({batch, tokens, width()}, {in_rows(x)}, [self = shared_from_this(), batch, tokens, offset](const Arrays& in, float* y) {
    self->run_projection(in[0].data<float>(), y, batch, tokens, offset);
  });
}

void AttentionHalf::run_projection(const float* x, float* y, int batch, int tokens, int offset) const {
  const int rows = batch * tokens;
  float* normed = pk_scratch(PK_SLOT_A, static_cast<size_t>(rows) * norm_.length());
  pk_rms_norm(x, norm_.weight(), norm_.eps, normed, rows, norm_.length());
  const pk_matrix matrices[3] = {qkv_[0].weights(), qkv_[1].weights(), qkv_[2].weights()};
  float* const parts[3] = {y, y + heads_.query * heads_.dim, y + (heads_.query + heads_.kv) * heads_.dim};
  const size_t strides[3] = {size_t(width()), size_t(width()), size_t(width())};
  pk_multiply(normed, rows, matrices, 3, parts, strides, fast_);
  for (int i = 0; i < 3; i++) qkv_[i].add_offset(parts[i], width(), rows);
  const pk_isa* isa = pk_current_isa();
  for (int row = 0; row < rows; row++) {
    const float* angles = table_->at(offset + row % tokens);
    for (int h = 0; h < heads_.query + heads_.kv; h++) {
      float* head = y + static_cast<size_t>(row) * width() + h * heads_.dim;
      if (const auto& norm = h < heads_.query ? query_norm_ : key_norm_) isa->rms_norm(head, norm->weight(), norm->eps, head, heads_.dim);
      isa->rotate(head, angles, table_->dims(), heads_.dim, is_traditional_, head);
    }
  }
}

array AttentionHalf::write(const array& buffer, const array& projected, int offset, int first_head) {
  require(buffer.ndim() == 4 && buffer.shape(0) == projected.shape(0) && buffer.shape(1) == heads_.kv && buffer.shape(3) == heads_.dim &&
              offset >= 0 && offset + projected.shape(1) <= buffer.shape(2),
          "the cache has no room for these tokens");
  require_float32(buffer);
  return make<WriteCache>(buffer.shape(), {in_rows(buffer), projected}, first_head, offset);
}

array AttentionHalf::attend(const array& x, const array& projected, const array& keys, const array& values, int offset) {
  const int batch = x.shape(0), tokens = x.shape(1);
  return make_step(x.shape(), {in_rows(x), projected, keys, values},
                   [self = shared_from_this(), batch, tokens, offset](const Arrays& in, float* y) {
                     self->run_attention(in[0].data<float>(), in[1].data<float>(), in[2], in[3], y, batch, tokens, offset);
                   });
}

void AttentionHalf::run_attention(const float* x, const float* projected, const array& keys, const array& values, float* y, int batch,
                                  int tokens, int offset) const {
  const size_t out_width = static_cast<size_t>(heads_.query) * heads_.dim, rows = static_cast<size_t>(batch) * tokens;
  float* attended = pk_scratch(PK_SLOT_A, rows * out_width);
  pk_attention_batch all{};
  pk_attention& task = all.first;
  all.batch = batch, all.kv_heads = heads_.kv;
  task.heads = heads_.query / heads_.kv, task.queries = tokens, task.keys = offset + tokens;
  task.head_dim = task.value_dim = heads_.dim, task.scale = heads_.scale, task.is_causal = tokens > 1;
  task.q = projected, all.q_batch = int64_t(tokens) * width(), task.q_head = heads_.dim, task.q_row = width();
  task.k = keys.data<float>(), all.k_batch = keys.strides(0), all.k_head = keys.strides(1), task.k_row = keys.strides(2);
  task.v = values.data<float>(), all.v_batch = values.strides(0), all.v_head = values.strides(1), task.v_row = values.strides(2);
  task.out = attended, all.out_batch = int64_t(tokens) * out_width, task.out_head = heads_.dim, task.out_row = int64_t(out_width);
  pk_attend(&all);
  const pk_matrix output = output_.weights();
  const size_t stride = output.rows;
  pk_multiply(attended, static_cast<int>(rows), &output, 1, &y, &stride, fast_);
  output_.add_offset(y, stride, static_cast<int>(rows));
  pk_add(x, y, y, rows * stride);
}

MlpHalf::MlpHalf(Norm norm, Matrix gate, Matrix up, Matrix down, int kind, bool fast)
    : norm_(std::move(norm)), gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)), kind_(kind), fast_(fast) {
  require(gate_.columns() == norm_.length() && up_.columns() == norm_.length() && gate_.rows() == up_.rows() &&
              down_.columns() == gate_.rows() && down_.rows() == norm_.length() && gate_.weights().bits == up_.weights().bits &&
              gate_.weights().group_size == up_.weights().group_size,
          "the matrices of an MLP must fit each other");
}

array MlpHalf::apply(const array& x) {
  const int rows = static_cast<int>(x.size() / norm_.length());
  return make_step(x.shape(), {in_rows(x)}, [self = shared_from_this(), rows](const Arrays& in, float* y) { self->run(in[0].data<float>(), y, rows); });
}

void MlpHalf::run(const float* x, float* y, int rows) const {
  const size_t wide = gate_.rows(), size = rows * wide;
  float* normed = pk_scratch(PK_SLOT_A, static_cast<size_t>(rows) * norm_.length());
  float* gated = pk_scratch(PK_SLOT_B, 2 * size);
  pk_rms_norm(x, norm_.weight(), norm_.eps, normed, rows, norm_.length());
  const pk_matrix matrices[2] = {gate_.weights(), up_.weights()};
  float* const parts[2] = {gated, gated + size};
  const size_t strides[2] = {wide, wide};
  pk_multiply(normed, rows, matrices, 2, parts, strides, fast_);
  gate_.add_offset(gated, wide, rows);
  up_.add_offset(gated + size, wide, rows);
  pk_gate(gated, gated + size, gated, size, kind_);
  const pk_matrix down = down_.weights();
  const size_t stride = down.rows;
  pk_multiply(gated, rows, &down, 1, &y, &stride, fast_);
  down_.add_offset(y, stride, rows);
  pk_add(x, y, y, rows * stride);
}

}  // namespace paceline
