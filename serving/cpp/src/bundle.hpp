#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "manifest.hpp"

namespace flowturbo {

/// An opened bundle: its manifest is valid, its files exist in their sizes. A file's hash is checked when
/// the file is first asked for, once. One thread at a time may ask.
class Bundle {
 public:
  /// Open a bundle directory; throws BundleError with the cause of rejection.
  static Bundle open(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }

  /// Return the path of one of the bundle's files after checking its hash; throws BundleError.
  std::filesystem::path file(const std::string& name) const;

 private:
  Bundle(std::filesystem::path path, Manifest manifest);

  std::filesystem::path path_;
  Manifest manifest_;
  mutable std::set<std::string> hashed_;
};

}  // namespace flowturbo
