#pragma once

#include <string>
#include <string_view>

/// Change a few values of a JSON document and return it, or nothing where the text is none: mutated bytes
/// hardly ever get past a JSON reader.
std::string mutate_json(std::string_view text, unsigned seed);
