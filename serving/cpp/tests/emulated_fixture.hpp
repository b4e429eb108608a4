#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device_backend.hpp"
#include "emulated_device.hpp"
#include "emulated_engines.hpp"

namespace flowturbo {

/// What a run gave; no images if it did not decode.
struct Result {
  std::vector<float> latents;
  std::vector<std::uint8_t> images;

  bool operator==(const Result& other) const;
};

/// The same bundle on an emulated device and on ONNX Runtime.
class Fixture {
 public:
  /// On the device, conditioners take calls of `conditioner_rows` rows, or of as many as the bundle says (0),
  /// and engines are for the GPUs `targets`.
  Fixture(const std::filesystem::path& path, Policy policy, std::int64_t conditioner_rows = 0,
          const std::vector<std::string>& targets = {});

  const Manifest& manifest() const { return manifest_; }
  /// Every program of the manifest.
  std::vector<const Program*> programs() const;
  std::int64_t largest_batch() const { return manifest_.batches.back(); }

  EmulatedDevice& device() { return *device_; }
  EmulatedEngines& engines() { return *engines_; }
  std::unique_ptr<Trajectory> bind(const Program& program, std::int64_t batch);
  /// End the backend, and with it engines and device; trajectories must have ended before.
  void close() { backend_.reset(); }

  /// Run the `number`-th request: of each the labels, seeds and guidance differ.
  Result run(Trajectory& trajectory, std::int64_t batch, int number, bool decode) const;
  /// What the request gives on ONNX Runtime, in buffers that nothing else has used.
  Result expected(const Program& program, std::int64_t batch, int number, bool decode) const;

 private:
  Bundle bundle_;
  Manifest manifest_;
  std::unique_ptr<Backend> reference_;
  EmulatedDevice* device_ = nullptr;
  EmulatedEngines* engines_ = nullptr;
  std::unique_ptr<DeviceBackend> backend_;
};

/// Throw std::runtime_error naming what was expected, unless it holds.
void require(bool holds, const std::string& expected);

/// Throw unless an action throws BackendError with a text in its message.
template <typename Action>
void require_error(Action action, const std::string& part) {
  try {
    action();
  } catch (const BackendError& error) {
    require(std::string(error.what()).find(part) != std::string::npos, part + " in " + error.what());
    return;
  }
  require(false, "an error with " + part);
}

}  // namespace flowturbo
