#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "program.hpp"

namespace flowturbo {

/// An engine's input or output; an axis without a size is named, as the first is: the batch.
struct Tensor {
  std::string name;
  std::string dtype;
  std::vector<std::optional<std::int64_t>> shape;
};

/// A network variant compiled for one backend at the given batch sizes.
struct Engine {
  std::string network;
  std::optional<std::string> variant;
  std::string backend;
  std::string precision;
  std::vector<std::int64_t> batches;
  std::string file;
  std::vector<std::string> data;
  std::vector<std::string> targets;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;

  /// What people call it, e.g. `predictor guided`.
  std::string name() const;
  /// Whether it takes `modulation`, which its conditioner computes, in place of time and conditions.
  bool is_hoisted() const;
};

/// A condition tensor, one int64 per row; `null` stands for no condition.
struct Condition {
  std::string name;
  std::int64_t minimum = 0;
  std::int64_t maximum = 0;
  std::optional<std::int64_t> null;
};

/// `channels` of the latent are guided; guided velocities carry `halves` (G) halves.
struct Guidance {
  std::int64_t channels = 1;
  std::int64_t halves = 1;
  double default_scale = 1;
};

/// `latent` is (C,H,W), `image` (H,W) of the decoder, if there is one.
struct Model {
  std::array<std::int64_t, 3> latent{};
  std::optional<std::array<std::int64_t, 2>> image;
  std::vector<Condition> conditions;
  Guidance guidance;
};

struct FileRecord {
  std::uint64_t bytes = 0;
  std::string sha256;
};

/// What a runtime needs of a manifest; `programs` are by schedule, then variant.
struct Manifest {
  Model model;
  std::vector<std::int64_t> batches;
  std::string default_schedule;
  std::map<std::string, std::map<std::string, Program>> programs;
  std::vector<Engine> engines;
  std::map<std::string, FileRecord> files;

  /// Return the engine of a network variant for a backend, the one built for `batch` if given; throws
  /// BundleError where there is none.
  const Engine& engine(const std::string& network, const std::optional<std::string>& variant,
                       const std::string& backend, std::optional<std::int64_t> batch = std::nullopt) const;
};

/// Check what a manifest says against itself and its `graphs`, and that its paths stay inside the bundle;
/// throws BundleError.
void validate(const Manifest& manifest, const std::vector<Engine>& graphs);

/// Read and validate a manifest (bundle/FORMAT.md); throws BundleError, whatever the bytes.
Manifest parse_manifest(std::string_view text);

}  // namespace flowturbo
