#pragma once

#include <cuda_runtime_api.h>

#include "combine.hpp"

namespace flowturbo {

/// Ask a stream of the current device for a combination.
cudaError_t launch_combination(const Combination& combination, cudaStream_t stream);

}  // namespace flowturbo
