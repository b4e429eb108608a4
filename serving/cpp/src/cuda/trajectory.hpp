#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "backend.hpp"
#include "binding.hpp"
#include "device.hpp"
#include "memory.hpp"

namespace flowturbo {

/// A program on a device: its memory on both sides of the bus, and the graphs captured over that memory,
/// which hold its addresses and end with it.
///
/// A run is one graph: inputs to the device, conditioning, steps, decoding, results to the host.
class DeviceTrajectory : public Trajectory {
 public:
  /// Allocate, open engines and compute what all runs share. Device, engines and manifest outlive the
  /// trajectory. Throws BundleError, BackendError.
  DeviceTrajectory(Device& device, DeviceEngines& engines, const Manifest& manifest, const Program& program,
                   std::int64_t batch);
  DeviceTrajectory(const DeviceTrajectory&) = delete;
  DeviceTrajectory& operator=(const DeviceTrajectory&) = delete;
  ~DeviceTrajectory() override;

  Inputs inputs() override;
  void run(bool decode) override;
  const float* latents() override;
  const std::uint8_t* images() override;

 private:
  using Work = std::function<void()>;

  void wait() noexcept;
  void allocate_blocks();
  void prepare_constants(DeviceEngines& engines);
  void bind_launches(DeviceEngines& engines);
  void bind_sums(std::vector<Sum>& sums);
  Work bind(DeviceEngines& engines, const BoundArrays& bound);
  std::int64_t rows_of(const EngineName& name) const;
  std::vector<Work> conditioner(DeviceEngines& engines, Network network, bool null);
  void upload_inputs();
  void enqueue(bool decode);
  void download(const char* result, const Array& array);

  Device& device_;
  const Manifest& manifest_;
  std::int64_t batch_;
  LaunchPlan plan_;
  Conditionings conditionings_;
  Layout layout_;
  std::map<EngineName, std::unique_ptr<DeviceEngine>> engines_;
  PinnedMemory pinned_inputs_;
  PinnedMemory pinned_results_;
  std::array<DeviceMemory, 3> blocks_;
  Arrays host_;
  Arrays arrays_;
  std::vector<Work> work_;
  Work decode_;
  std::map<bool, std::unique_ptr<DeviceGraph>> graphs_;
};

}  // namespace flowturbo
