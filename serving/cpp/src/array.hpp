#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace flowturbo {

enum class ElementType { float32, int64, uint8 };

std::size_t size_of(ElementType type);

/// The product of sizes times an element's; throws BackendError where memory has no such size.
std::size_t byte_count(ElementType type, const std::vector<std::int64_t>& shape);

/// The sum of two sizes that were checked before; throws as byte_count does.
std::size_t checked_sum(std::size_t a, std::size_t b);

/// An array that somebody else owns, in host or device memory.
struct Array {
  void* data = nullptr;
  ElementType type = ElementType::float32;
  std::vector<std::int64_t> shape;

  std::size_t bytes() const { return byte_count(type, shape); }
  /// `count` rows from row `first` on.
  Array rows(std::int64_t first, std::int64_t count) const;
};

/// Arrays by the names of fields, or by those of an engine's inputs and outputs.
using Arrays = std::map<std::string, Array>;

}  // namespace flowturbo
