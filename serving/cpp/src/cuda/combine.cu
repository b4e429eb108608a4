#include <algorithm>

#include "combine_launch.hpp"

namespace flowturbo {
namespace {

constexpr unsigned threads = 256;
// Enough to fill any GPU; the stride does the rest.
constexpr std::int64_t max_blocks = 4096;

__global__ void combine(const __grid_constant__ Combination combination) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t count = combination.rows * combination.elements;
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; index < count; index += stride) {
    combine_element(combination, index / combination.elements, index % combination.elements);
  }
}

}  // namespace

cudaError_t launch_combination(const Combination& combination, cudaStream_t stream) {
  const std::int64_t count = combination.rows * combination.elements;
  const std::int64_t blocks = std::min((count + threads - 1) / threads, max_blocks);
  combine<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(combination);
  return cudaGetLastError();
}

}  // namespace flowturbo
