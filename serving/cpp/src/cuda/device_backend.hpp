#pragma once

#include <memory>

#include "backend.hpp"
#include "device.hpp"

namespace flowturbo {

/// Runs a bundle's engines on one device.
class DeviceBackend : public Backend {
 public:
  /// The manifest outlives the backend.
  DeviceBackend(const Manifest& manifest, std::unique_ptr<Device> device,
                std::unique_ptr<DeviceEngines> engines);

  /// Load the engines that a program needs; throws BackendError where they are for another GPU, before any
  /// is loaded.
  void prepare(const Program& program) override;
  std::unique_ptr<Trajectory> bind(const Program& program, std::int64_t batch) override;

 private:
  const Manifest& manifest_;
  // Engines end before their device.
  std::unique_ptr<Device> device_;
  std::unique_ptr<DeviceEngines> engines_;
};

}  // namespace flowturbo
