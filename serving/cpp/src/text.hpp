#pragma once

#include <sstream>
#include <string>
#include <string_view>

namespace flowturbo {

/// Join values to a text.
template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Return a text from outside in quotes, shortened and on one line.
std::string in_quotes(std::string_view value);

/// Return a foreign library's message on one line, shortened.
std::string one_line(std::string_view value);

/// Join the items of a container, by commas.
template <typename Items>
std::string listed(const Items& items) {
  std::ostringstream out;
  const char* separator = "";
  for (const auto& item : items) {
    out << separator << item;
    separator = ", ";
  }
  return out.str();
}

}  // namespace flowturbo
