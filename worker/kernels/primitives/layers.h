// Transformer layers in one operation: what separate ones cost is the way through Python, MLX's graph and its stream, not arithmetic (at
// 135M parameters about a third of a token's time).
#pragma once

#include <memory>
#include <vector>

#include "arrays.h"
#include "mlx/distributed/distributed.h"
#include "rotation.h"

namespace paceline {

// A weight matrix, and the vector that is added to its products where the layer has one. Holds its arrays, which are evaluated.
class Matrix {
 public:
  Matrix(const array& codes, const std::optional<array>& scales, const std::optional<array>& biases, const std::optional<array>& offset,
         int group_size, int bits);

  const pk_matrix& weights() const { return weights_; }
  int rows() const { return weights_.rows; }
  int columns() const { return weights_.columns; }
  // y [count, rows] = x [count, columns] . W^T, and the offset.
  void multiply(const float* x, int count, float* y, bool fast, pk_loops loops) const;
  // Adds the offset, if there is one, to `count` rows of y.
  void add_offset(float* y, size_t stride, int count) const;

 private:
  Arrays arrays_;
  pk_matrix weights_;
  std::optional<array> offset_;
};

// A norm's weight, which is evaluated.
struct Norm {
  Norm(const array& weight, float eps);
  const float* weight() const { return weight_.data<float>(); }
  int length() const { return weight_.shape(0); }
  float eps;

 private:
  array weight_;
};

struct Heads {
  int query, kv, dim;
  float scale;
};

// What one cache sees of an input: rows [batch, tokens, hidden], which follow those of the part before it. Keys and values are
// [batch, kv heads, capacity, dim], of which offset tokens are filled; batch is 1 where an input has several parts.
struct Part {
  float *keys, *values;
  int batch, tokens, offset, capacity;

  int rows() const { return batch * tokens; }
};
using Parts = std::vector<Part>;
inline int count_rows(const Parts& parts) {
  int rows = 0;
  for (const Part& part : parts) rows += part.rows();
  return rows;
}

// The ranks that hold a part each of the columns of a half's last matrix: their products add up. One of them has its offset.
using Group = mx::distributed::Group;

// x + o(attention(rope(qkv(norm(x))))).
class AttentionHalf {
 public:
  AttentionHalf(Norm norm, std::vector<Matrix> qkv, Matrix output, std::optional<Norm> query_norm, std::optional<Norm> key_norm,
                Heads heads, const array& frequencies, float rope_scale, bool is_traditional, bool fast, std::optional<Group> group);

  const Heads& heads() const { return heads_; }
  int hidden() const { return norm_.length(); }
  const std::optional<Group>& group() const { return group_; }
  // x and y [rows of all parts, hidden], not the same: y is what this rank adds to x. The new keys and values go into the parts' buffers.
  void run(const float* x, float* y, const Parts& parts, pk_loops loops) const;

 private:
  int width() const { return (heads_.query + 2 * heads_.kv) * heads_.dim; }
  void project(const float* x, float* projected, const Parts& parts, pk_loops loops) const;
  void rotate(float* row, const float* angles) const;
  void write(const float* projected, const Part& part) const;
  void attend(const float* projected, float* attended, const Parts& parts) const;
  pk_attention_batch plan(const float* projected, float* attended, const Part& part) const;

  Norm norm_;
  std::vector<Matrix> qkv_;
  Matrix output_;
  std::optional<Norm> query_norm_, key_norm_;
  Heads heads_;
  std::shared_ptr<RotationTable> table_;
  bool is_traditional_, fast_;
  std::optional<Group> group_;
};

// x + down(gate(w1(norm(x)), w2(norm(x)))).
class MlpHalf {
 public:
  MlpHalf(Norm norm, Matrix gate, Matrix up, Matrix down, int kind, bool fast, std::optional<Group> group);
  int hidden() const { return norm_.length(); }
  const std::optional<Group>& group() const { return group_; }
  // x and y [rows, hidden], not the same: y is what this rank adds to x.
  void run(const float* x, float* y, int rows, pk_loops loops) const;

 private:
  Norm norm_;
  Matrix gate_, up_, down_;
  int kind_;
  bool fast_;
  std::optional<Group> group_;
};

// One layer; without an MLP where that is not ours to compute.
struct Layer {
  std::shared_ptr<AttentionHalf> attention;
  std::shared_ptr<MlpHalf> mlp;
};

// The KV cache of a sequence in one layer, or of several sequences of one length, before a run. Keys and values are null before the first
// token, else available, [batch, kv heads, capacity, dim], of which offset tokens are filled.
struct LayerCache {
  struct Buffer {
    array* now;
    bool is_held;              /* by somebody else than the cache, who must not see it change */
    std::optional<array> next; /* set by the run: what the cache shall hold instead; unset where it was written in place */
  };

  Buffer keys, values;
  int offset;
  int tokens; /* that come, of each sequence */
  int step;   /* tokens that buffers grow by */
};

// Layers that follow one another, computed in one operation. Where they have groups, every rank must compute the same layers of the same
// input in the same order.
class LayerRun {
 public:
  explicit LayerRun(std::vector<Layer> layers);

  // Layers [first, first + number of elements of caches) of x [batch, tokens, hidden], which all caches of a layer together divide up.
  // Keys and values are written in place where nobody else holds them. Until the result is computed they count as not computed either, so
  // that MLX shows nobody what was there before.
  array apply(const array& x, int first, std::vector<std::vector<LayerCache>>& caches) const;

 private:
  std::vector<Layer> layers_;
  std::optional<Group> group_;
};

// Computes those that are not available yet.
void make_available(const std::vector<array*>& arrays);

}  // namespace paceline
