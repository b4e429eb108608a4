#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "flowturbo/error.hpp"
#include "flowturbo/export.h"

namespace flowturbo {

/// How a bundle is loaded. Empty `backend` and `device` leave the choice to the bundle and the backend;
/// `threads` bounds the CPU threads of an engine (0: all cores).
struct LoadOptions {
  std::string backend;
  std::string device;
  int threads = 0;
};

/// `count` images of `height` × `width` RGB pixels, row by row from the top left, one after the other.
struct Images {
  std::size_t count = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  std::vector<std::uint8_t> pixels;
};

/// `count` latents (channels, height, width), one after the other.
struct Latents {
  std::size_t count = 0;
  std::size_t channels = 0;
  std::size_t height = 0;
  std::size_t width = 0;
  std::vector<float> values;
};

/// What a loaded bundle offers. `schedules` begins with the default; the image's sizes are 0 without a
/// decoder.
struct Info {
  std::string backend;
  std::vector<std::string> schedules;
  std::vector<std::int64_t> batches;
  std::int64_t label_minimum = 0;
  std::int64_t label_maximum = 0;
  float default_guidance = 1;
  std::size_t latent_channels = 0;
  std::size_t latent_height = 0;
  std::size_t latent_width = 0;
  std::size_t image_height = 0;
  std::size_t image_width = 0;
};

/// Generates images from a bundle. Safe to call from several threads, where calls queue.
class FLOWTURBO_API Pipeline {
 public:
  /// Open a bundle and load the engines that its default schedule needs.
  ///
  /// Throws BundleError for a bundle that cannot be used, BackendError for a backend or device.
  static Pipeline load(const std::filesystem::path& bundle, const LoadOptions& options = {});

  Pipeline(Pipeline&&) noexcept;
  Pipeline& operator=(Pipeline&&) noexcept;
  ~Pipeline();

  /// Generate one image per label, in order.
  ///
  /// `seeds` are one per label, each giving the same image in every batch, or none for 0, 1, …;
  /// `guidance` is one scale, one per label, or none for the bundle's default; `schedule` is one of
  /// info().schedules, or empty for the default. Throws RequestError, ScheduleError, BackendError.
  Images generate(const std::vector<std::int64_t>& labels, const std::vector<std::uint64_t>& seeds = {},
                  const std::vector<float>& guidance = {}, const std::string& schedule = {});

  /// Generate latents without decoding them; arguments and errors as for generate.
  Latents generate_latents(const std::vector<std::int64_t>& labels,
                           const std::vector<std::uint64_t>& seeds = {},
                           const std::vector<float>& guidance = {}, const std::string& schedule = {});

  const Info& info() const noexcept;

 private:
  class Implementation;
  explicit Pipeline(std::unique_ptr<Implementation> implementation) noexcept;

  std::unique_ptr<Implementation> implementation_;
};

}  // namespace flowturbo
