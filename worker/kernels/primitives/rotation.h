// Cosines and sines of rotary position embeddings, kept by position.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace paceline {

// Tables of one set of frequencies. Blocks of 64 positions are made as they are asked for, and stay where they are.
class RotationTable {
 public:
  RotationTable(std::vector<float> frequencies, float scale) : frequencies_(std::move(frequencies)), scale_(scale) {}

  int dims() const { return 2 * static_cast<int>(frequencies_.size()); }

  // Cosines, then sines, of angle scale * position * frequency: dims() floats.
  const float* at(int position);

  // The table of these frequencies, made once per process.
  static std::shared_ptr<RotationTable> find(const std::vector<float>& frequencies, float scale);

 private:
  std::vector<float> make_block(int block) const;

  std::vector<float> frequencies_;
  float scale_;
  std::mutex mutex_;
  std::map<int, std::vector<float>> blocks_;
};

}  // namespace paceline
