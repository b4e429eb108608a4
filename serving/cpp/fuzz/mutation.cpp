#include "mutation.hpp"

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <random>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace {

using Json = nlohmann::json;
using Random = std::minstd_rand;

// Writing a document recurses.
constexpr std::size_t deepest = 100;

const std::vector<Json>& replacements() {
  static const std::vector<Json> values = Json::parse(R"([
    null, true, false, 0, 1, 2, 3, -1, 64, 255, 65536, 2147483647, 4294967296, 9223372036854775807,
    -9223372036854775808, 18446744073709551615, 0.0, 0.5, 1.0, -0.5, 1e-320, 1e308, 1.5, "", "a", "..", "/",
    "a/../b", "state", "velocity:guided", "velocity:unguided", "predictor", "refiner", "guided", "unguided",
    "evaluate", "combine", "noise", "modulation", "batch", "onnxruntime", [], {}, [0], [[]], {"": null}
  ])");
  return values;
}

std::size_t choose(std::size_t count, Random& random) {
  return std::uniform_int_distribution<std::size_t>(0, count - 1)(random);
}

/// All values of a document, the outermost first; none where it is nested too deeply.
std::vector<Json*> all_values(Json& document) {
  std::vector<std::pair<Json*, std::size_t>> found{{&document, 0}};
  std::vector<Json*> values;
  for (std::size_t index = 0; index < found.size(); ++index) {
    const auto [value, depth] = found[index];
    if (depth > deepest) return {};
    values.push_back(value);
    if (!value->is_structured()) continue;
    for (Json& child : *value) found.emplace_back(&child, depth + 1);
  }
  return values;
}

void erase_one(Json& value, Random& random) {
  const auto position = std::next(value.begin(), static_cast<std::ptrdiff_t>(choose(value.size(), random)));
  value.erase(position);
}

/// Repeat an item of a list, or give an object's value a second key.
void repeat_one(Json& value, Random& random) {
  const auto position = std::next(value.begin(), static_cast<std::ptrdiff_t>(choose(value.size(), random)));
  const Json copy = *position;
  if (value.is_array()) {
    value.insert(position, copy);
  } else {
    value[position.key() + "'"] = copy;
  }
}

void change_one(Json& document, Random& random) {
  const std::vector<Json*> values = all_values(document);
  Json& value = *values[choose(values.size(), random)];
  const bool has_children = value.is_structured() && !value.empty();
  switch (choose(5, random)) {
    case 0:
      if (has_children) return erase_one(value, random);
      break;
    case 1:
      if (has_children) return repeat_one(value, random);
      break;
    case 2: {
      // A copy first: the other may hold this one.
      Json other = *values[choose(values.size(), random)];
      value = std::move(other);
      return;
    }
    case 3:
      if (value.is_number_integer()) {
        value = value.get<std::int32_t>() + std::int64_t{choose(2, random) == 0 ? 1 : -1};
        return;
      }
      break;
    default:
      break;
  }
  value = replacements()[choose(replacements().size(), random)];
}

}  // namespace

std::string mutate_json(std::string_view text, unsigned seed) {
  Json document = Json::parse(text, nullptr, false);
  if (document.is_discarded()) return {};
  Random random(seed);
  for (std::size_t left = 1 + choose(3, random); left > 0; --left) {
    if (all_values(document).empty()) return {};
    change_one(document, random);
  }
  return all_values(document).empty() ? std::string() : document.dump();
}
