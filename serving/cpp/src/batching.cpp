#include "batching.hpp"

#include <algorithm>
#include <functional>

namespace flowturbo {

std::vector<std::int64_t> split(std::size_t rows, const std::vector<std::int64_t>& sizes) {
  // costs[n] is the least cost of n rows, last[n] the size of a batch in which that is reached: of several
  // the smallest, so that every implementation divides alike.
  std::vector<std::uint64_t> costs(rows + 1, 0);
  std::vector<std::uint64_t> last(rows + 1, 0);
  for (std::size_t n = 1; n <= rows; ++n) {
    costs[n] = UINT64_MAX;
    for (const std::int64_t signed_size : sizes) {
      const auto size = static_cast<std::uint64_t>(signed_size);
      const std::uint64_t cost = costs[n - std::min<std::uint64_t>(n, size)] + size + 1;
      if (cost < costs[n] || (cost == costs[n] && size < last[n])) {
        costs[n] = cost;
        last[n] = size;
      }
    }
  }
  std::vector<std::int64_t> parts;
  for (std::uint64_t left = rows; left > 0; left -= std::min(left, last[left])) {
    parts.push_back(static_cast<std::int64_t>(last[left]));
  }
  std::sort(parts.begin(), parts.end(), std::greater<>());
  return parts;
}

}  // namespace flowturbo
