#include "text.hpp"

#include <cstddef>

namespace flowturbo {
namespace {

constexpr std::size_t longest_value = 60;
constexpr std::size_t longest_message = 300;

std::string shortened(std::string text, std::size_t longest) {
  if (text.size() <= longest) return text;
  // Not in the middle of a character of UTF-8.
  while (longest > 0 && (static_cast<unsigned char>(text[longest]) & 0xC0U) == 0x80U) --longest;
  return text.substr(0, longest) + "…";
}

bool is_control(char character) {
  const auto code = static_cast<unsigned char>(character);
  return code < 0x20 || code == 0x7F;
}

}  // namespace

std::string in_quotes(std::string_view value) {
  std::string plain;
  for (const char character : value) plain += is_control(character) ? '?' : character;
  return "'" + shortened(std::move(plain), longest_value) + "'";
}

std::string one_line(std::string_view value) {
  std::string plain;
  bool is_gap = false;
  for (const char character : value) {
    if (is_control(character) || character == ' ') {
      is_gap = !plain.empty();
      continue;
    }
    if (is_gap) plain += ' ';
    is_gap = false;
    plain += character;
  }
  return shortened(std::move(plain), longest_message);
}

}  // namespace flowturbo
