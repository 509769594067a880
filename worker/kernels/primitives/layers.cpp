#include "layers.h"

#include <cstring>

namespace paceline {

namespace {

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

void AttentionHalf::run(const float* x, float* keys, float* values, float* y, int batch, int tokens, int offset, int capacity) const {
  const int rows = batch * tokens;
  float* projected = pk_scratch(PK_SLOT_PROJECTED, static_cast<size_t>(rows) * width());
  project(x, projected, batch, tokens, offset);
  write(projected, keys, heads_.query, batch, tokens, offset, capacity);
  write(projected, values, heads_.query + heads_.kv, batch, tokens, offset, capacity);
  float* attended = pk_scratch(PK_SLOT_A, static_cast<size_t>(rows) * heads_.query * heads_.dim);
  attend(projected, keys, values, attended, batch, tokens, offset, capacity);
  const pk_matrix output = output_.weights();
  const size_t stride = output.rows;
  pk_multiply(attended, rows, &output, 1, &y, &stride, fast_);
  output_.add_offset(y, stride, rows);
  pk_add(x, y, y, rows * stride);
}

void AttentionHalf::project(const float* x, float* y, int batch, int tokens, int offset) const {
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

// Copies heads [first_head, first_head + kv heads) of the projection into the buffer at `offset`.
void AttentionHalf::write(const float* projected, float* buffer, int first_head, int batch, int tokens, int offset, int capacity) const {
  for (int b = 0; b < batch; b++)
    for (int t = 0; t < tokens; t++)
      for (int h = 0; h < heads_.kv; h++)
        std::memcpy(buffer + ((static_cast<size_t>(b) * heads_.kv + h) * capacity + offset + t) * heads_.dim,
                    projected + (static_cast<size_t>(b) * tokens + t) * width() + (first_head + h) * heads_.dim, heads_.dim * sizeof(float));
}

void AttentionHalf::attend(const float* projected, const float* keys, const float* values, float* attended, int batch, int tokens,
                           int offset, int capacity) const {
  const int64_t out_width = int64_t(heads_.query) * heads_.dim, head_size = int64_t(capacity) * heads_.dim;
  pk_attention_batch all{};
  pk_attention& task = all.first;
  all.batch = batch, all.kv_heads = heads_.kv;
  task.heads = heads_.query / heads_.kv, task.queries = tokens, task.keys = offset + tokens;
  task.head_dim = task.value_dim = heads_.dim, task.scale = heads_.scale, task.is_causal = tokens > 1;
  task.q = projected, all.q_batch = int64_t(tokens) * width(), task.q_head = heads_.dim, task.q_row = width();
  task.k = keys, all.k_batch = heads_.kv * head_size, all.k_head = head_size, task.k_row = heads_.dim;
  task.v = values, all.v_batch = heads_.kv * head_size, all.v_head = head_size, task.v_row = heads_.dim;
  task.out = attended, all.out_batch = tokens * out_width, task.out_head = heads_.dim, task.out_row = out_width;
  pk_attend(&all);
}

MlpHalf::MlpHalf(Norm norm, Matrix gate, Matrix up, Matrix down, int kind, bool fast)
    : norm_(std::move(norm)), gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)), kind_(kind), fast_(fast) {
  require(gate_.columns() == norm_.length() && up_.columns() == norm_.length() && gate_.rows() == up_.rows() &&
              down_.columns() == gate_.rows() && down_.rows() == norm_.length() && gate_.weights().bits == up_.weights().bits &&
              gate_.weights().group_size == up_.weights().group_size,
          "the matrices of an MLP must fit each other");
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

namespace {

// A cache's keys or values on their way through an operation: where to write, and what must be copied there first.
struct Buffer {
  float* to;
  std::optional<array> from; /* [batch, heads, its capacity, dim] */
};

// The output that goes on from `before`: in its memory where that is possible.
Buffer extend(std::optional<array>& before, array& out) {
  if (before && before->shape() == out.shape() && before->is_donatable()) {
    out.copy_shared_buffer(*before);
    return {out.data<float>(), std::nullopt};
  }
  return {allocate(out), std::move(before)};
}

void fill(const Buffer& buffer, const Heads& heads, int batch, int offset, int capacity) {
  const int before = buffer.from ? buffer.from->shape(2) : 0;
  const size_t filled = buffer.from ? size_t(offset) * heads.dim : 0, size = size_t(capacity) * heads.dim;
  for (int i = 0; i < batch * heads.kv; i++) {
    float* to = buffer.to + i * size;
    if (filled) std::memcpy(to, buffer.from->data<float>() + size_t(i) * before * heads.dim, filled * sizeof(float));
    std::memset(to + filled, 0, (size - filled) * sizeof(float));
  }
}

class RunLayers : public CpuPrimitive {
 public:
  RunLayers(std::shared_ptr<LayerRun> run, int first, std::vector<LayerCache> caches)
      : run_(std::move(run)), first_(first), caches_(std::move(caches)) {}
  const char* name() const override { return "PacelineRunLayers"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    std::vector<Step> steps;
    for (size_t i = 0; i < caches_.size(); i++) {
      LayerCache& cache = caches_[i];
      steps.push_back({run_->at(first_ + int(i)), extend(cache.keys, out[1 + 2 * i]), extend(cache.values, out[2 + 2 * i]), cache.offset,
                       cache.capacity});
    }
    caches_.clear();
    float* y = allocate(out[0]);
    run([steps = std::move(steps), x = in[0], y] { compute(steps, x.data<float>(), y, x.shape(0), x.shape(1), x.shape(2)); });
  }

 private:
  struct Step {
    Layer layer;
    Buffer keys, values;
    int offset, capacity;
  };

  static void compute(const std::vector<Step>& steps, const float* x, float* y, int batch, int tokens, int hidden) {
    const int rows = batch * tokens;
    float* between = pk_scratch(PK_SLOT_HIDDEN, static_cast<size_t>(rows) * hidden);
    for (const Step& step : steps) {
      for (const Buffer* buffer : {&step.keys, &step.values})
        if (buffer->from || step.offset == 0) fill(*buffer, step.layer.attention->heads(), batch, step.offset, step.capacity);
      float* attended = step.layer.mlp ? between : y;
      step.layer.attention->run(x, step.keys.to, step.values.to, attended, batch, tokens, step.offset, step.capacity);
      if (step.layer.mlp) step.layer.mlp->run(attended, y, rows);
      x = y;
    }
  }

  std::shared_ptr<LayerRun> run_;
  int first_;
  std::vector<LayerCache> caches_;
};

}  // namespace

LayerRun::LayerRun(std::vector<Layer> layers) : layers_(std::move(layers)) {
  require(!layers_.empty(), "a run has at least one layer");
  for (const Layer& layer : layers_) {
    require(layer.attention->hidden() == layers_[0].attention->hidden(), "the layers of a run must be equally wide");
    require(layers_.size() == 1 || layer.mlp, "the layers of a run of several must have their MLP");
    require(!layer.mlp || layer.mlp->hidden() == layer.attention->hidden(), "the halves of a layer must be equally wide");
  }
}

Arrays LayerRun::apply(const array& x, int first, std::vector<LayerCache> caches) {
  require_float32(x);
  require(x.ndim() == 3 && x.shape(2) == layers_[0].attention->hidden(), "the input must be [batch, tokens, hidden]");
  require(first >= 0 && !caches.empty() && first + caches.size() <= layers_.size(), "there are no such layers");
  const int batch = x.shape(0), tokens = x.shape(1);
  std::vector<mx::Shape> shapes{x.shape()};
  Arrays wanted;
  for (size_t i = 0; i < caches.size(); i++) {
    LayerCache& cache = caches[i];
    const Heads& heads = layers_[first + i].attention->heads();
    require(cache.offset >= 0 && cache.offset + tokens <= cache.capacity, "the cache has no room for these tokens");
    require(cache.keys.has_value() == cache.values.has_value() && (cache.keys || cache.offset == 0), "the cache has no keys or no values");
    for (auto* buffer : {&cache.keys, &cache.values}) {
      shapes.push_back({batch, heads.kv, cache.capacity, heads.dim});
      if (!*buffer) continue;
      const array& b = **buffer;
      require_float32(b);
      require(b.ndim() == 4 && b.shape(0) == batch && b.shape(1) == heads.kv && b.shape(3) == heads.dim && cache.offset <= b.shape(2),
              "the cache is of another shape");
      if (!b.is_available()) wanted.push_back(b);
    }
  }
  if (!wanted.empty()) mx::eval(wanted);
  wanted.clear();
  for (auto& cache : caches)
    for (auto* buffer : {&cache.keys, &cache.values})
      if (*buffer && !(*buffer)->flags().row_contiguous) mx::eval((*buffer).emplace(mx::contiguous(**buffer)));
  const std::vector<mx::Dtype> types(shapes.size(), mx::float32);
  return array::make_arrays(std::move(shapes), types, std::make_shared<RunLayers>(shared_from_this(), first, std::move(caches)), {in_rows(x)});
}

}  // namespace paceline
