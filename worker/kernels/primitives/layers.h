// The halves of a transformer layer, each in few operations: what separate ones cost is the way through Python, MLX's graph and its
// stream, not arithmetic (at 135M parameters about a third of a token's time).
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

// x + o(attention(rope(qkv(norm(x))))), in steps that follow one another through their arrays:
// project -> [batch, tokens, (query + 2 kv heads) * dim], normed and rotated; write -> the cache with the new keys or values;
// attend -> [batch, tokens, hidden].
class AttentionHalf : public std::enable_shared_from_this<AttentionHalf> {
 public:
  AttentionHalf(Norm norm, std::vector<Matrix> qkv, Matrix output, std::optional<Norm> query_norm, std::optional<Norm> key_norm, Heads heads,
                const array& frequencies, float rope_scale, bool is_traditional, bool fast);

  array project(const array& x, int offset);
  // The buffer [batch, kv heads, capacity, dim] itself where nobody else holds it, else a copy.
  array write_keys(const array& buffer, const array& projected, int offset) { return write(buffer, projected, offset, heads_.query); }
  array write_values(const array& buffer, const array& projected, int offset) {
    return write(buffer, projected, offset, heads_.query + heads_.kv);
  }
  array attend(const array& x, const array& projected, const array& keys, const array& values, int offset);

  void run_projection(const float* x, float* y, int batch, int tokens, int offset) const;
  void run_attention(const float* x, const float* projected, const array& keys, const array& values, float* y, int batch, int tokens,
                     int offset) const;

 private:
  array write(const array& buffer, const array& projected, int offset, int first_head);
  int width() const { return (heads_.query + 2 * heads_.kv) * heads_.dim; }

  Norm norm_;
  std::vector<Matrix> qkv_;
  Matrix output_;
  std::optional<Norm> query_norm_, key_norm_;
  Heads heads_;
  std::shared_ptr<RotationTable> table_;
  bool is_traditional_, fast_;
};

// x + down(gate(w1(norm(x)), w2(norm(x)))).
class MlpHalf : public std::enable_shared_from_this<MlpHalf> {
 public:
  MlpHalf(Norm norm, Matrix gate, Matrix up, Matrix down, int kind, bool fast);
  array apply(const array& x);
  void run(const float* x, float* y, int rows) const;

 private:
  Norm norm_;
  Matrix gate_, up_, down_;
  int kind_;
  bool fast_;
};

}  // namespace paceline
