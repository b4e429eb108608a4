#pragma once

#include <cstddef>
#include <cstdint>

namespace flowturbo {

/// Write the first `count` raw values of Philox4x64-10 with key (seed, 0).
void fill_raw(std::uint64_t seed, std::uint64_t* out, std::size_t count);

/// Write the first `count` values of a seed's noise (bundle/FORMAT.md, Noise).
void fill_noise(std::uint64_t seed, float* out, std::size_t count);

}  // namespace flowturbo
