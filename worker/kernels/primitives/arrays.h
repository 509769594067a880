// What every primitive needs: float32 inputs with known layout, CPU only, work handed to MLX's stream.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/mlx.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace paceline {

namespace mx = mlx::core;
using mx::array;
using Arrays = std::vector<array>;

// A primitive that runs on the CPU's stream and has no gradient. T gives the name.
class CpuPrimitive : public mx::Primitive {
 public:
  CpuPrimitive() : mx::Primitive(mx::to_stream({})) {}
  void eval_gpu(const Arrays&, Arrays&) override { throw std::runtime_error("Paceline's kernels run on CPUs only"); }

 protected:
  // Runs work on the stream's thread, after what was handed to it before. MLX keeps inputs and outputs alive until then.
  template <class Work>
  void run(Work work) {
    mx::cpu::get_command_encoder(stream()).dispatch(std::move(work));
  }

  // An evaluated float32 array of four dimensions whose last lies side by side: itself or, made by the stream, a copy. What strides an
  // array has is not known before it is evaluated, so this can't be asked for when the operation is made.
  array side_by_side(const array& a);
};

inline float* allocate(array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  return out.data<float>();
}

// The array in row-major order without gaps: itself where that is known already, else through an operation that copies if it must.
inline array in_rows(const array& a) {
  const bool is_known = a.status() == array::Status::available && a.flags().row_contiguous;
  return is_known ? a : mx::contiguous(a);
}

inline int dtype_of(const array& a) {
  if (a.dtype() == mx::float32) return PK_F32;
  if (a.dtype() == mx::float16) return PK_F16;
  if (a.dtype() == mx::bfloat16) return PK_BF16;
  throw std::invalid_argument("values must be float32, float16 or bfloat16");
}

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}
inline void require_float32(const array& a) { require(a.dtype() == mx::float32, "the input must be float32"); }

template <class P, class... Args>
array make(mx::Shape shape, Arrays inputs, Args&&... args) {
  return array(std::move(shape), mx::float32, std::make_shared<P>(std::forward<Args>(args)...), std::move(inputs));
}

// How a matrix is packed; bits 0 = not at all.
struct Packing {
  int group_size;
  int bits;
};

// Columns of a matrix (or stack of matrices) whose codes these are.
inline int count_columns(const array& codes, int bits) { return bits ? codes.shape(-1) * 32 / bits : codes.shape(-1); }

// The matrix [rows, columns] (or stack of matrices) in evaluated arrays: codes alone, or codes, scales and biases.
pk_matrix as_matrix(const Packing& packing, const array& codes, const array* scales, const array* biases);

// The loops of operations that are made from now on.
void choose_loops(pk_loops loops);
pk_loops chosen_loops();

array multiply(const array& x, const array& codes, const std::optional<array>& scales, const std::optional<array>& biases,
               int group_size, int bits, bool fast);
array multiply_gathered(const array& x, const array& codes, const std::optional<array>& scales, const std::optional<array>& biases,
                        const array& experts, int group_size, int bits, bool fast);
array rms_norm(const array& x, const std::optional<array>& weight, float eps);
array layer_norm(const array& x, const std::optional<array>& weight, const std::optional<array>& bias, float eps);
array gate(const array& gate, const array& up, int kind);
array rotate(const array& x, int dims, bool is_traditional, const array& frequencies, float scale, const array& offsets);
array attend(const array& q, const array& k, const array& v, float scale, bool is_causal, const std::optional<array>& mask,
             const std::optional<array>& sinks);

}  // namespace paceline
