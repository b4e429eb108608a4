#include "json_fields.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

/// A parser's message shows the bytes that it stopped at, which need not be characters.
std::string printable(const char* reason) {
  std::string plain = one_line(reason);
  std::replace_if(
      plain.begin(), plain.end(), [](char byte) { return byte < ' ' || byte > '~'; }, '?');
  return plain;
}

}  // namespace

std::string JsonField::where() const { return one_line(where_); }

JsonField JsonField::operator[](const std::string& key) const {
  if (!value_->is_object()) refuse("an object");
  const auto member = value_->find(key);
  if (member == value_->end()) throw BundleError(message(where(), ": '", key, "' is missing"));
  return {*member, where_ + "." + key};
}

bool JsonField::has(const std::string& key) const {
  if (!value_->is_object()) refuse("an object");
  return value_->contains(key);
}

std::string JsonField::text() const {
  if (!value_->is_string()) refuse("a text");
  return value_->get<std::string>();
}

std::int64_t JsonField::integer() const {
  if (!value_->is_number_integer()) refuse("an integer");
  const bool is_too_large =
      value_->is_number_unsigned() &&
      value_->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
  if (is_too_large) refuse("an integer of 64 bits");
  return value_->get<std::int64_t>();
}

std::size_t JsonField::index() const {
  const std::int64_t value = integer();
  if (value < 0) refuse("an integer from 0 on");
  return static_cast<std::size_t>(value);
}

double JsonField::number() const {
  if (!value_->is_number()) refuse("a number");
  const double value = value_->get<double>();
  if (!std::isfinite(value)) refuse("a finite number");
  return value;
}

std::vector<JsonField> JsonField::items() const {
  if (!value_->is_array()) refuse("a list");
  std::vector<JsonField> found;
  for (const Json& item : *value_) found.emplace_back(item, message(where_, "[", found.size(), "]"));
  return found;
}

std::vector<std::pair<std::string, JsonField>> JsonField::members() const {
  if (!value_->is_object()) refuse("an object");
  std::vector<std::pair<std::string, JsonField>> found;
  for (const auto& member : value_->items()) {
    found.emplace_back(member.key(), JsonField(member.value(), where_ + "." + member.key()));
  }
  return found;
}

void JsonField::refuse(const char* expected) const {
  const bool is_large = value_->is_structured();
  const std::string found = is_large ? std::string(value_->type_name()) : in_quotes(value_->dump());
  throw BundleError(message(where(), " is ", found, ", expected ", expected));
}

Json parse_json(std::string_view text) {
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& error) {
    throw BundleError("manifest: not JSON (" + printable(error.what()) + ")");
  }
}

}  // namespace flowturbo
