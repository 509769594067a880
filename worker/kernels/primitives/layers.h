// Transformer layers in one operation: what separate ones cost is the way through Python, MLX's graph and its stream, not arithmetic (at
// 135M parameters about a third of a token's time).
#pragma once

#include <memory>

#include "arrays.h"
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

// x + o(attention(rope(qkv(norm(x))))).
class AttentionHalf {
 public:
  AttentionHalf(Norm norm, std::vector<Matrix> qkv, Matrix output, std::optional<Norm> query_norm, std::optional<Norm> key_norm, Heads heads,
                const array& frequencies, float rope_scale, bool is_traditional, bool fast);

  const Heads& heads() const { return heads_; }
  int hidden() const { return norm_.length(); }
  // x and y [batch, tokens, hidden], not the same; keys and values [batch, kv heads, capacity, dim], filled up to offset, get the new ones.
  void run(const float* x, float* keys, float* values, float* y, int batch, int tokens, int offset, int capacity) const;

 private:
  int width() const { return (heads_.query + 2 * heads_.kv) * heads_.dim; }
  void project(const float* x, float* projected, int batch, int tokens, int offset) const;
  void write(const float* projected, float* buffer, int first_head, int batch, int tokens, int offset, int capacity) const;
  void attend(const float* projected, const float* keys, const float* values, float* attended, int batch, int tokens, int offset,
              int capacity) const;

  Norm norm_;
  std::vector<Matrix> qkv_;
  Matrix output_;
  std::optional<Norm> query_norm_, key_norm_;
  Heads heads_;
  std::shared_ptr<RotationTable> table_;
  bool is_traditional_, fast_;
};

// x + down(gate(w1(norm(x)), w2(norm(x)))).
class MlpHalf {
 public:
  MlpHalf(Norm norm, Matrix gate, Matrix up, Matrix down, int kind, bool fast);
  // x and y [rows, hidden], not the same.
  void run(const float* x, float* y, int rows) const;
  int hidden() const { return norm_.length(); }

 private:
  Norm norm_;
  Matrix gate_, up_, down_;
  int kind_;
  bool fast_;
};

// One layer; without an MLP where that is not ours to compute.
struct Layer {
  std::shared_ptr<AttentionHalf> attention;
  std::shared_ptr<MlpHalf> mlp;
};

// What a layer's KV cache is before and after a run: keys and values [batch, kv heads, capacity, dim], if there are any yet, of which
// offset tokens are filled, and the capacity that they shall have.
struct LayerCache {
  std::optional<array> keys, values;
  int offset, capacity;
};

// Layers that follow one another, computed in one operation.
class LayerRun : public std::enable_shared_from_this<LayerRun> {
 public:
  explicit LayerRun(std::vector<Layer> layers);

  // Layers [first, first + number of caches) of x [batch, tokens, hidden]: the result, then keys and values of each layer. A buffer of the
  // right capacity that nobody else holds when this is computed is written in place. Buffers that are not computed yet are computed first.
  Arrays apply(const array& x, int first, std::vector<LayerCache> caches);

  const Layer& at(int index) const { return layers_[index]; }

 private:
  std::vector<Layer> layers_;
};

}  // namespace paceline
