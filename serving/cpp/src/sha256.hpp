#pragma once

#include <filesystem>
#include <string>

namespace flowturbo {

/// Return the SHA-256 of a file as lower-case hex; throws BundleError where it cannot be read.
std::string sha256(const std::filesystem::path& file);

}  // namespace flowturbo
