#include "layers.h"

#include <algorithm>
#include <cstring>

#include "mlx/distributed/distributed_impl.h"

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

void Matrix::multiply(const float* x, int count, float* y, bool fast, pk_loops loops) const {
  const size_t stride = rows();
  pk_multiply(x, count, &weights_, 1, &y, &stride, fast, loops);
  add_offset(y, stride, count);
}

void Matrix::add_offset(float* y, size_t stride, int count) const {
  if (!offset_) return;
  for (int row = 0; row < count; row++) pk_add(y + row * stride, offset_->data<float>(), y + row * stride, rows());
}

Norm::Norm(const array& weight, float eps) : eps(eps), weight_(evaluated(weight)) { require_float32(weight); }

AttentionHalf::AttentionHalf(Norm norm, std::vector<Matrix> qkv, Matrix output, std::optional<Norm> query_norm,
                             std::optional<Norm> key_norm, Heads heads, const array& frequencies, float rope_scale,
                             bool is_traditional, bool fast, std::optional<Group> group)
    : norm_(std::move(norm)), qkv_(std::move(qkv)), output_(std::move(output)), query_norm_(std::move(query_norm)),
      key_norm_(std::move(key_norm)), heads_(heads), is_traditional_(is_traditional), fast_(fast), group_(std::move(group)) {
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

void AttentionHalf::run(const float* x, float* y, const Parts& parts, pk_loops loops) const {
  const int rows = count_rows(parts);
  float* projected = pk_scratch(PK_SLOT_PROJECTED, static_cast<size_t>(rows) * width());
  project(x, projected, parts, loops);
  const float* row = projected;
  for (const Part& part : parts) {
    write(row, part);
    row += static_cast<size_t>(part.rows()) * width();
  }
  float* attended = pk_scratch(PK_SLOT_A, static_cast<size_t>(rows) * heads_.query * heads_.dim);
  attend(projected, attended, parts);
  output_.multiply(attended, rows, y, fast_, loops);
}

void AttentionHalf::project(const float* x, float* y, const Parts& parts, pk_loops loops) const {
  const int rows = count_rows(parts);
  float* normed = pk_scratch(PK_SLOT_A, static_cast<size_t>(rows) * norm_.length());
  pk_rms_norm(x, norm_.weight(), norm_.eps, normed, rows, norm_.length());
  const pk_matrix matrices[3] = {qkv_[0].weights(), qkv_[1].weights(), qkv_[2].weights()};
  float* const places[3] = {y, y + heads_.query * heads_.dim, y + (heads_.query + heads_.kv) * heads_.dim};
  const size_t strides[3] = {size_t(width()), size_t(width()), size_t(width())};
  pk_multiply(normed, rows, matrices, 3, places, strides, fast_, loops);
  for (int i = 0; i < 3; i++) qkv_[i].add_offset(places[i], width(), rows);
  for (const Part& part : parts)
    for (int row = 0; row < part.rows(); row++, y += width()) rotate(y, table_->at(part.offset + row % part.tokens));
}

// Query and key heads of one row, normed where the layer has norms for them.
void AttentionHalf::rotate(float* row, const float* angles) const {
  const pk_isa* isa = pk_current_isa();
  for (int h = 0; h < heads_.query + heads_.kv; h++) {
    float* head = row + h * heads_.dim;
    if (const auto& norm = h < heads_.query ? query_norm_ : key_norm_) isa->rms_norm(head, norm->weight(), norm->eps, head, heads_.dim);
    isa->rotate(head, angles, table_->dims(), heads_.dim, is_traditional_, head);
  }
}

// Copies the keys and values of a part's rows into its buffers.
void AttentionHalf::write(const float* projected, const Part& part) const {
  for (int b = 0; b < part.batch; b++)
    for (int t = 0; t < part.tokens; t++)
      for (int h = 0; h < heads_.kv; h++) {
        const float* key = projected + (static_cast<size_t>(b) * part.tokens + t) * width() + (heads_.query + h) * heads_.dim;
        const size_t at = ((static_cast<size_t>(b) * heads_.kv + h) * part.capacity + part.offset + t) * heads_.dim;
        std::memcpy(part.keys + at, key, heads_.dim * sizeof(float));
        std::memcpy(part.values + at, key + heads_.kv * heads_.dim, heads_.dim * sizeof(float));
      }
}

pk_attention_batch AttentionHalf::plan(const float* projected, float* attended, const Part& part) const {
  const int64_t out_width = int64_t(heads_.query) * heads_.dim, head_size = int64_t(part.capacity) * heads_.dim;
  pk_attention_batch all{};
  pk_attention& task = all.first;
  all.batch = part.batch, all.kv_heads = heads_.kv;
  task.heads = heads_.query / heads_.kv, task.queries = part.tokens, task.keys = part.offset + part.tokens;
  task.head_dim = task.value_dim = heads_.dim, task.scale = heads_.scale, task.is_causal = part.tokens > 1;
  task.q = projected, all.q_batch = int64_t(part.tokens) * width(), task.q_head = heads_.dim, task.q_row = width();
  task.k = part.keys, all.k_batch = heads_.kv * head_size, all.k_head = head_size, task.k_row = heads_.dim;
  task.v = part.values, all.v_batch = heads_.kv * head_size, all.v_head = head_size, task.v_row = heads_.dim;
  task.out = attended, all.out_batch = part.tokens * out_width, task.out_head = heads_.dim, task.out_row = out_width;
  return all;
}

namespace {

constexpr int kFewTokens = 16;                  // of a part whose attention is too little to be divided by tokens
constexpr int64_t kMinSharedAttention = 40000;  // multiply-adds, as in the library's own division

// The attention of one KV head of a plan for one sequence.
pk_attention_batch take_kv_head(pk_attention_batch all, int head) {
  all.first.q += head * all.first.heads * all.first.q_head;
  all.first.out += head * all.first.heads * all.first.out_head;
  all.first.k += head * all.k_head;
  all.first.v += head * all.v_head;
  all.kv_heads = 1;
  return all;
}

// Those of few tokens are divided over threads together, by KV heads; the one with the most keys goes first.
void attend_together(std::vector<pk_attention_batch>& all) {
  std::sort(all.begin(), all.end(), [](const auto& one, const auto& other) { return one.first.keys > other.first.keys; });
  int64_t size = 0;
  for (const auto& one : all) size += int64_t(one.kv_heads) * one.first.heads * one.first.queries * one.first.keys * one.first.head_dim;
  const auto attend = [](void* context, int chunk) {
    const auto& all = *static_cast<const std::vector<pk_attention_batch>*>(context);
    const pk_attention_batch one = take_kv_head(all[chunk / all[0].kv_heads], chunk % all[0].kv_heads);
    pk_attend(&one);
  };
  const int chunks = all.empty() ? 0 : static_cast<int>(all.size()) * all[0].kv_heads;
  if (size >= kMinSharedAttention) return pk_parallel(chunks, attend, &all);
  for (int chunk = 0; chunk < chunks; chunk++) attend(&all, chunk);
}

}  // namespace

void AttentionHalf::attend(const float* projected, float* attended, const Parts& parts) const {
  std::vector<pk_attention_batch> small;
  for (const Part& part : parts) {
    const pk_attention_batch all = plan(projected, attended, part);
    if (parts.size() == 1 || part.tokens > kFewTokens)
      pk_attend(&all);
    else
      small.push_back(all);
    projected += static_cast<size_t>(part.rows()) * width();
    attended += static_cast<size_t>(part.rows()) * heads_.query * heads_.dim;
  }
  attend_together(small);
}

MlpHalf::MlpHalf(Norm norm, Matrix gate, Matrix up, Matrix down, int kind, bool fast, std::optional<Group> group)
    : norm_(std::move(norm)), gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)), kind_(kind), fast_(fast),
      group_(std::move(group)) {
  require(gate_.columns() == norm_.length() && up_.columns() == norm_.length() && gate_.rows() == up_.rows() &&
              down_.columns() == gate_.rows() && down_.rows() == norm_.length() && gate_.weights().bits == up_.weights().bits &&
              gate_.weights().group_size == up_.weights().group_size,
          "the matrices of an MLP must fit each other");
}

void MlpHalf::run(const float* x, float* y, int rows, pk_loops loops) const {
  const size_t wide = gate_.rows(), size = rows * wide;
  float* normed = pk_scratch(PK_SLOT_A, static_cast<size_t>(rows) * norm_.length());
  float* gated = pk_scratch(PK_SLOT_B, 2 * size);
  pk_rms_norm(x, norm_.weight(), norm_.eps, normed, rows, norm_.length());
  const pk_matrix matrices[2] = {gate_.weights(), up_.weights()};
  float* const parts[2] = {gated, gated + size};
  const size_t strides[2] = {wide, wide};
  pk_multiply(normed, rows, matrices, 2, parts, strides, fast_, loops);
  gate_.add_offset(gated, wide, rows);
  up_.add_offset(gated + size, wide, rows);
  pk_gate(gated, gated + size, gated, size, kind_);
  down_.multiply(gated, rows, y, fast_, loops);
}

namespace {

// What a grown or copied buffer starts with: heads of the one before, up to `filled` floats each. What follows is written before it is read,
// and left untouched until then: a page that nobody touched takes no memory, and no time in the step that makes room for a long prompt.
struct Copy {
  const float* from; /* null when nothing was there */
  float* to;
  int heads;
  size_t from_size, filled, size; /* floats of a head */

  void run() const {
    if (!from) return;
    for (int i = 0; i < heads; i++) std::memcpy(to + i * size, from + i * from_size, filled * sizeof(float));
  }
};

struct Step {
  Layer layer;
  Parts parts;
  std::vector<Copy> copies;
};

using Memory = std::vector<std::shared_ptr<array::Data>>;

// The group of those halves that have one.
std::optional<Group> find_group(const std::vector<Layer>& layers) {
  std::optional<Group> found;
  const auto look_at = [&found](const auto& half) {
    if (!half || !half->group()) return;
    require(!found || found->raw_group() == half->group()->raw_group(), "the halves of a run must have one group");
    found = half->group();
  };
  for (const Layer& layer : layers) look_at(layer.attention), look_at(layer.mlp);
  require(!found || found->size() > 1, "a group has several ranks");
  return found;
}

array make_rows(int count, int hidden) {
  return array(mx::allocator::malloc(size_t(count) * hidden * sizeof(float)), mx::Shape{count, hidden}, mx::float32);
}

// The work of a run in pieces that follow each other, two for every half: what this rank adds to the half's input, and the addition. Between
// the two is the place for what other ranks add.
class Work {
 public:
  Work(std::vector<Step> steps, Memory memory, const array& x, float* y, pk_loops loops)
      : steps_(std::move(steps)), memory_(std::move(memory)), x_(x), y_(y), hidden_(x.shape(2)), rows_(count_rows(steps_[0].parts)),
        loops_(loops) {
    for (const Step& step : steps_) {
      halves_.push_back({&step, false});
      if (step.layer.mlp) halves_.push_back({&step, true});
    }
  }

  size_t num_halves() const { return halves_.size(); }
  bool is_shared(size_t half) const {
    const auto& [step, is_mlp] = halves_[half];
    return (is_mlp ? step->layer.mlp->group() : step->layer.attention->group()).has_value();
  }
  // What this rank adds to a half goes from here to all ranks, and what they all add comes here, by rank.
  void open_exchange(int ranks) {
    own_.emplace(make_rows(rows_, hidden_));
    all_.emplace(make_rows(ranks * rows_, hidden_));
  }
  const array& own() const { return *own_; }
  array& all() { return *all_; }

  void compute(size_t first, size_t last) {
    for (size_t piece = first; piece < last; piece++) piece % 2 ? add(piece / 2) : multiply(piece / 2);
  }

 private:
  struct Half {
    const Step* step;
    bool is_mlp;
  };

  // Attention writes between the halves, or the result where the layer's MLP is not ours; the MLP reads there.
  float* between() const { return pk_scratch(PK_SLOT_HIDDEN, static_cast<size_t>(rows_) * hidden_); }
  const float* input(size_t half) const { return halves_[half].is_mlp ? between() : half ? y_ : x_.data<float>(); }
  float* output(size_t half) const { return !halves_[half].is_mlp && halves_[half].step->layer.mlp ? between() : y_; }

  void multiply(size_t half) {
    const auto& [step, is_mlp] = halves_[half];
    const float* x = input(half);
    float* y = is_shared(half) ? own_->data<float>() : output(half);
    if (is_mlp) return step->layer.mlp->run(x, y, rows_, loops_);
    for (const Copy& copy : step->copies) copy.run();
    step->layer.attention->run(x, y, step->parts, loops_);
  }

  void add(size_t half) {
    float* y = output(half);
    if (is_shared(half)) add_ranks(y);
    pk_add(input(half), y, y, static_cast<size_t>(rows_) * hidden_);
  }

  // In the order of ranks, so that every rank finds the same bits, whatever else is in the step. (A ring's own sum begins elsewhere for each
  // part of an array, and the parts are other ones when the array grows.)
  void add_ranks(float* y) const {
    const size_t size = own_->size(), ranks = all_->size() / size;
    const float* all = all_->data<float>();
    pk_add(all, all + size, y, size);
    for (size_t rank = 2; rank < ranks; rank++) pk_add(y, all + rank * size, y, size);
  }

  std::vector<Step> steps_;
  Memory memory_; /* what the steps write and copy from */
  array x_;
  float* y_;
  int hidden_, rows_;
  pk_loops loops_;
  std::vector<Half> halves_;
  std::optional<array> own_, all_;
};

// Outputs: the result, and one value that is there when keys and values were written. They are not outputs themselves because MLX links
// every output of an operation with every other: what that costs grows with the square of the layers.
class RunLayers : public CpuPrimitive {
 public:
  RunLayers(std::vector<Step> steps, Memory memory, const std::optional<Group>& group)
      : steps_(std::move(steps)), memory_(std::move(memory)), group_(group), loops_(chosen_loops()) {}
  const char* name() const override { return "PacelineRunLayers"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    float* y = allocate(out[0]);
    *allocate(out[1]) = 1.0f;
    const auto work = std::make_shared<Work>(std::move(steps_), std::move(memory_), in[0], y, loops_);
    if (group_) work->open_exchange(group_->size());
    size_t first = 0;
    for (size_t half = 0; half < work->num_halves(); half++) {
      if (!work->is_shared(half)) continue;
      run([work, first, half] { work->compute(first, 2 * half + 1); });
      group_->raw_group()->all_gather(work->own(), work->all(), stream());
      first = 2 * half + 1;
    }
    run([work, first] { work->compute(first, 2 * work->num_halves()); });
  }

 private:
  std::vector<Step> steps_;
  Memory memory_;
  std::optional<Group> group_;
  pk_loops loops_;
};

// Stands behind keys or values that a run is going to write: an array that has its memory already and is there when its input is, the
// value that says so. An array goes that way from step to step without being made anew: 0.8 microseconds for each of 480,
// where 8 sequences of 30 layers get a token.
class Written : public CpuPrimitive {
 public:
  const char* name() const override { return "PacelineWritten"; }
  void eval_cpu(const Arrays&, Arrays&) override {}

  static bool is_behind(const array& a) {
    return a.status() == array::Status::unscheduled && a.has_primitive() && dynamic_cast<Written*>(&a.primitive());
  }
  // Only for an array that nobody else holds.
  static void await(array& a, const std::shared_ptr<mx::Primitive>& self, const array& written) {
    a.primitive_ptr() = self;
    a.inputs().assign(1, written);
    a.set_status(array::Status::unscheduled);
  }
  // What evaluating it would do, without the way through MLX's evaluation. Its input must be available.
  static void finish(array& a) {
    a.detach();
    a.set_status(array::Status::available);
  }
};

bool is_in_rows(const array& a) { return a.flags().row_contiguous && a.data_size() == a.size(); }

// Tokens that buffers hold after a run, as in mlx-lm's KVCache: whole steps more than are filled, where they must grow.
int find_capacity(const LayerCache& cache) {
  const int capacity = cache.keys.now ? cache.keys.now->shape(2) : 0;
  if (cache.offset + cache.tokens <= capacity) return capacity;
  return cache.offset + (cache.tokens + cache.step - 1) / cache.step * cache.step;
}

// Finds the memory that a run writes to, and notes what must be copied there first.
class BufferPlan {
 public:
  BufferPlan(const Heads& heads, int batch, int offset, int capacity)
      : heads_(heads), batch_(batch), offset_(offset), capacity_(capacity) {}

  float* choose(LayerCache::Buffer& buffer, Step& step, Memory& memory) const {
    array* now = buffer.now;
    if (now) check(*now);
    if (!now || buffer.is_held || !now->is_donatable() || !is_in_rows(*now) || now->shape(2) != capacity_)
      step.copies.push_back(plan_copy(now, buffer.next.emplace(make()), memory));
    array& to = buffer.next ? *buffer.next : *now;
    memory.push_back(to.data_shared_ptr());
    return to.data<float>();
  }

 private:
  void check(const array& a) const {
    require_float32(a);
    require(a.ndim() == 4 && a.shape(0) == batch_ && a.shape(1) == heads_.kv && a.shape(3) == heads_.dim && offset_ <= a.shape(2),
            "the cache is of another shape");
  }
  array make() const {
    const mx::Shape shape{batch_, heads_.kv, capacity_, heads_.dim};
    return array(mx::allocator::malloc(size_t(batch_) * heads_.kv * capacity_ * heads_.dim * sizeof(float)), shape, mx::float32);
  }
  Copy plan_copy(const array* now, array& to, Memory& memory) const {
    Copy copy{nullptr, to.data<float>(), batch_ * heads_.kv, 0, 0, size_t(capacity_) * heads_.dim};
    if (!now || !offset_) return copy;
    array from = is_in_rows(*now) ? *now : mx::contiguous(*now);
    from.eval();
    copy.from = from.data<float>(), copy.from_size = size_t(from.shape(2)) * heads_.dim, copy.filled = size_t(offset_) * heads_.dim;
    memory.push_back(from.data_shared_ptr());
    return copy;
  }

  Heads heads_;
  int batch_, offset_, capacity_;
};

// Sequences of a part: one each, or all of the input in a single part.
int find_batch(const array& x, const std::vector<LayerCache>& caches) {
  int tokens = 0;
  for (const LayerCache& cache : caches) {
    require(cache.tokens > 0, "a cache gets at least one token");
    tokens += cache.tokens;
  }
  const int rows = x.shape(0) * x.shape(1);
  require(tokens && rows % tokens == 0 && (caches.size() == 1 || rows == tokens), "the caches do not take as many tokens as come");
  return rows / tokens;
}

}  // namespace

void make_available(const std::vector<array*>& arrays) {
  Arrays wanted;
  for (const array* a : arrays)
    if (!a->is_available()) wanted.push_back(Written::is_behind(*a) ? a->inputs()[0] : *a);
  std::erase_if(wanted, [](const array& a) { return a.is_available(); });
  if (!wanted.empty()) mx::eval(std::move(wanted));
  for (array* a : arrays)
    if (Written::is_behind(*a)) Written::finish(*a);
}

LayerRun::LayerRun(std::vector<Layer> layers) : layers_(std::move(layers)), group_(find_group(layers_)) {
  require(!layers_.empty(), "a run has at least one layer");
  for (const Layer& layer : layers_) {
    require(layer.attention->hidden() == layers_[0].attention->hidden(), "the layers of a run must be equally wide");
    require(layers_.size() == 1 || layer.mlp, "the layers of a run of several must have their MLP");
    require(!layer.mlp || layer.mlp->hidden() == layer.attention->hidden(), "the halves of a layer must be equally wide");
  }
}

array LayerRun::apply(const array& x, int first, std::vector<std::vector<LayerCache>>& caches) const {
  require_float32(x);
  require(x.ndim() == 3 && x.shape(2) == layers_[0].attention->hidden(), "the input must be [batch, tokens, hidden]");
  require(first >= 0 && !caches.empty() && first + caches.size() <= layers_.size(), "there are no such layers");
  std::vector<Step> steps;
  Memory memory;
  for (size_t i = 0; i < caches.size(); i++) {
    Step& step = steps.emplace_back(Step{layers_[first + i], {}, {}});
    const int batch = find_batch(x, caches[i]);
    for (LayerCache& cache : caches[i]) {
      require(!cache.keys.now == !cache.values.now && cache.offset >= 0 && (cache.keys.now || cache.offset == 0),
              "the cache has no keys or no values");
      const int capacity = find_capacity(cache);
      const BufferPlan plan(step.layer.attention->heads(), batch, cache.offset, capacity);
      float* keys = plan.choose(cache.keys, step, memory);
      step.parts.push_back({keys, plan.choose(cache.values, step, memory), batch, cache.tokens, cache.offset, capacity});
    }
  }
  const Arrays outputs = array::make_arrays({x.shape(), {1}}, {mx::float32, mx::float32},
                                            std::make_shared<RunLayers>(std::move(steps), std::move(memory), group_), {in_rows(x)});
  const auto written = std::make_shared<Written>();
  for (auto& layer : caches)
    for (LayerCache& cache : layer)
      for (LayerCache::Buffer* buffer : {&cache.keys, &cache.values})
        Written::await(buffer->next ? *buffer->next : *buffer->now, written, outputs[1]);
  return outputs[0];
}

}  // namespace paceline
