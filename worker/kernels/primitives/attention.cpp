// Scaled dot product attention over grouped KV heads.
#include "arrays.h"

namespace paceline {

array CpuPrimitive::side_by_side(const array& a) {
  if (a.strides(3) == 1 || a.shape(3) == 1) return a;
  array copy(a.shape(), a.dtype(), nullptr, {});
  float* to = allocate(copy);
  mx::cpu::get_command_encoder(stream()).add_temporary(copy);
  run([from = a.data<float>(), to, shape = a.shape(), strides = a.strides()]() mutable {
    for (int i = 0; i < shape[0]; i++)
      for (int j = 0; j < shape[1]; j++)
        for (int k = 0; k < shape[2]; k++)
          for (int l = 0; l < shape[3]; l++) *to++ = from[i * strides[0] + j * strides[1] + k * strides[2] + l * strides[3]];
  });
  return copy;
}

namespace {

// Inputs: q, k, v, then the mask and the sinks where there are any.
class Attend : public CpuPrimitive {
 public:
  Attend(float scale, bool is_causal, bool has_mask, bool has_sinks)
      : scale_(scale), is_causal_(is_causal), has_mask_(has_mask), has_sinks_(has_sinks) {}
  const char* name() const override { return "PacelineAttend"; }

  void eval_cpu(const Arrays& in, Arrays& out) override {
    const array q = side_by_side(in[0]), k = side_by_side(in[1]), v = side_by_side(in[2]);
    pk_attention_batch all{};
    pk_attention& task = all.first;
    all.batch = q.shape(0);
    all.kv_heads = k.shape(1);
    task.heads = q.shape(1) / k.shape(1);
    task.queries = q.shape(2);
    task.keys = k.shape(2);
    task.head_dim = q.shape(3);
    task.value_dim = v.shape(3);
    task.scale = scale_;
    task.is_causal = is_causal_;
    task.q = q.data<float>();
    all.q_batch = q.strides(0), task.q_head = q.strides(1), task.q_row = q.strides(2);
    task.k = k.data<float>();
    all.k_batch = k.strides(0), all.k_head = k.strides(1), task.k_row = k.strides(2);
    task.v = v.data<float>();
    all.v_batch = v.strides(0), all.v_head = v.strides(1), task.v_row = v.strides(2);
    if (has_mask_) set_mask(all, in[3]);
    if (has_sinks_) task.sinks = in.back().data<float>();
    set_output(all, out[0]);
    run([all] { pk_attend(&all); });
  }

 private:
  static void set_mask(pk_attention_batch& all, const array& mask) {
    all.first.mask = mask.data<void>();
    all.first.is_mask_additive = mask.dtype() == mx::float32;
    all.mask_batch = mask.strides(0);
    all.first.mask_head = mask.strides(1);
    all.first.mask_row = mask.strides(2);
    all.first.mask_key = mask.strides(3);
  }

  // Laid out as [batch, tokens, heads, value_dim], so that the transposition which follows costs nothing.
  static void set_output(pk_attention_batch& all, array& out) {
    const int64_t heads = out.shape(1), tokens = out.shape(2), dim = out.shape(3);
    const mx::Strides strides{tokens * heads * dim, dim, heads * dim, 1};
    array::Flags flags{};
    flags.contiguous = true;
    flags.row_contiguous = tokens == 1 || heads == 1;
    flags.col_contiguous = out.size() <= 1;
    out.set_data(mx::allocator::malloc(out.nbytes()), out.size(), strides, flags);
    all.first.out = out.data<float>();
    all.out_batch = strides[0];
    all.first.out_head = strides[1];
    all.first.out_row = strides[2];
  }

  float scale_;
  bool is_causal_, has_mask_, has_sinks_;
};

}  // namespace

// q [batch, heads, queries, head_dim], k [batch, kv_heads, keys, head_dim], v [batch, kv_heads, keys, value_dim], whose last dimensions
// lie side by side; mask bool or float32, broadcast to [batch, heads, queries, keys]; sinks [heads].
array attend(const array& q, const array& k, const array& v, float scale, bool is_causal, const std::optional<array>& mask,
             const std::optional<array>& sinks) {
  require_float32(q);
  require_float32(k);
  require_float32(v);
  Arrays inputs{q, k, v};
  if (mask) inputs.push_back(mx::broadcast_to(*mask, {q.shape(0), q.shape(1), q.shape(2), k.shape(2)}));
  if (sinks) inputs.push_back(in_rows(mx::astype(*sinks, mx::float32)));
  return make<Attend>({q.shape(0), q.shape(1), q.shape(2), v.shape(3)}, std::move(inputs), scale, is_causal, mask.has_value(),
                      sinks.has_value());
}

}  // namespace paceline
