#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flowturbo {

/// Return batch sizes that together hold `rows`, largest first; the last may be padded. A run costs about
/// its rows plus one, so that padding one batch beats many small ones.
std::vector<std::int64_t> split(std::size_t rows, const std::vector<std::int64_t>& sizes);

}  // namespace flowturbo
