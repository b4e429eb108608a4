#include "bundle.hpp"

#include <cstdint>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "flowturbo/error.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

namespace fs = std::filesystem;

constexpr const char* manifest_name = "manifest.json";

fs::file_status status_of(const fs::path& path) {
  std::error_code error;
  return fs::symlink_status(path, error);
}

void refuse_link(const fs::path& path) {
  if (fs::is_symlink(status_of(path))) {
    throw BundleError(path.string() + ": is a link; bundles hold plain files");
  }
}

Manifest read_manifest(const fs::path& folder) {
  const fs::path path = folder / manifest_name;
  refuse_link(path);
  if (!fs::is_regular_file(status_of(path))) {
    throw BundleError(folder.string() +
                      ": no bundle here (manifest.json not found); make one with `flowturbo_trt build`");
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file) throw BundleError(path.string() + ": cannot be read");
  try {
    return parse_manifest(text);
  } catch (const BundleError& error) {
    throw BundleError(folder.string() + ": " + error.what());
  }
}

void check_size(const fs::path& folder, const std::string& name, std::uint64_t bytes) {
  fs::path path = folder;
  // A link could lead out of the bundle, or change under a running process.
  for (const fs::path& part : fs::path(name)) refuse_link(path /= part);
  if (!fs::is_regular_file(status_of(path))) {
    throw BundleError(path.string() + ": is missing; restore it or rebuild the bundle");
  }
  if (const std::uintmax_t found = fs::file_size(path); found != bytes) {
    throw BundleError(message(path.string(), ": has ", found, " bytes, expected ", bytes,
                              "; copy the bundle again or rebuild it"));
  }
}

/// A graph could name weights that no hash covers.
void check_folder(const fs::path& folder, const fs::path& root, const Manifest& manifest) {
  refuse_link(folder);
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    refuse_link(entry.path());
    const std::string name = entry.path().lexically_relative(root).generic_string();
    if (!entry.is_directory() && manifest.files.count(name) == 0) {
      throw BundleError(entry.path().string() + ": is not part of the bundle; move it elsewhere");
    }
  }
}

}  // namespace

Bundle::Bundle(fs::path path, Manifest manifest) : path_(std::move(path)), manifest_(std::move(manifest)) {}

Bundle Bundle::open(const fs::path& path) {
  Bundle bundle(path, read_manifest(path));
  try {
    for (const auto& [name, record] : bundle.manifest_.files) check_size(path, name, record.bytes);
    for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
      // A note beside the manifest does no harm, wherever it is kept.
      if (entry.is_directory()) check_folder(entry.path(), path, bundle.manifest_);
    }
  } catch (const fs::filesystem_error& error) {
    throw BundleError(path.string() + ": cannot be read (" + error.code().message() + ")");
  }
  return bundle;
}

fs::path Bundle::file(const std::string& name) const {
  const fs::path path = path_ / name;
  if (hashed_.count(name) == 0) {
    if (sha256(path) != manifest_.files.at(name).sha256) {
      throw BundleError(path.string() + ": its content is not what was built (sha256 differs); " +
                        "restore it or rebuild the bundle");
    }
    hashed_.insert(name);
  }
  return path;
}

}  // namespace flowturbo
