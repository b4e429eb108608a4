#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "program.hpp"

namespace flowturbo {

using Json = nlohmann::json;

/// A value of a document, and its place in it for errors. Every reading method throws BundleError where the
/// value is of another type.
class JsonField {
 public:
  JsonField(const Json& value, std::string where) : value_(&value), where_(std::move(where)) {}

  std::string where() const;
  bool is_null() const { return value_->is_null(); }
  bool is_text() const { return value_->is_string(); }

  /// The member of an object by its key, and whether there is one; it is an error to ask for one that is
  /// missing.
  JsonField operator[](const std::string& key) const;
  bool has(const std::string& key) const;

  std::string text() const;
  std::int64_t integer() const;
  /// A number from 0 on, such as a size or an index.
  std::size_t index() const;
  /// A finite number.
  double number() const;

  std::vector<JsonField> items() const;
  std::vector<std::pair<std::string, JsonField>> members() const;

  template <typename Read>
  auto list(Read read) const {
    std::vector<decltype(read(std::declval<const JsonField&>()))> found;
    for (const JsonField& item : items()) found.push_back(read(item));
    return found;
  }

 private:
  [[noreturn]] void refuse(const char* expected) const;

  const Json* value_;
  std::string where_;
};

/// Read a document; throws BundleError for bytes that are no JSON.
Json parse_json(std::string_view text);

/// Read and validate a program (version 1); throws BundleError.
Program read_program(const JsonField& field);

}  // namespace flowturbo
