#include "array.hpp"

#include <limits>

#include "flowturbo/error.hpp"

namespace flowturbo {
namespace {

// What pointer differences can express.
constexpr std::size_t most_bytes = std::numeric_limits<std::size_t>::max() / 2;

[[noreturn]] void refuse() {
  throw BackendError("the bundle's shapes need more memory than there are addresses; rebuild it");
}

std::size_t checked_product(std::size_t a, std::size_t b) {
  if (b != 0 && a > most_bytes / b) refuse();
  return a * b;
}

}  // namespace

std::size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return sizeof(float);
    case ElementType::int64:
      return sizeof(std::int64_t);
    default:
      return sizeof(std::uint8_t);
  }
}

std::size_t byte_count(ElementType type, const std::vector<std::int64_t>& shape) {
  std::size_t bytes = size_of(type);
  for (const std::int64_t size : shape) bytes = checked_product(bytes, static_cast<std::size_t>(size));
  return bytes;
}

std::size_t checked_sum(std::size_t a, std::size_t b) {
  if (a > most_bytes - b) refuse();
  return a + b;
}

Array Array::rows(std::int64_t first, std::int64_t count) const {
  Array part = *this;
  part.shape[0] = 1;
  const std::size_t row = part.bytes();
  part.shape[0] = count;
  part.data = static_cast<std::uint8_t*>(data) + static_cast<std::size_t>(first) * row;
  return part;
}

}  // namespace flowturbo
