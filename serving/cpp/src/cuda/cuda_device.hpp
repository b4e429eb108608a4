#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include "device.hpp"

namespace flowturbo {

/// Throw BackendError with what CUDA says, unless it succeeded at what `asked` names.
void check_cuda(cudaError_t result, const std::string& asked);

/// A GPU through CUDA's runtime, with a stream of its own that never waits for the default one.
class CudaDevice : public Device {
 public:
  /// Open the GPU of an index; throws BackendError where there is none, or no driver.
  explicit CudaDevice(int index);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice() override;

  cudaStream_t stream() const { return stream_; }

  std::string name() const override { return name_; }
  std::string capability() const override { return capability_; }
  void make_current() override;
  void* allocate(std::size_t size) override;
  void* allocate_pinned(std::size_t size) override;
  void free(void* memory) noexcept override;
  void free_pinned(void* memory) noexcept override;
  void upload(void* target, const void* source, std::size_t size) override;
  void download(void* target, const void* source, std::size_t size) override;
  void combine(const Combination& combination) override;
  std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) override;
  void launch(const DeviceGraph& graph) override;
  void synchronize() override;

 private:
  int index_;
  std::string name_;
  std::string capability_;
  cudaStream_t stream_ = nullptr;
};

/// The index in `cuda` or `cuda:N`, or 0 for none; throws BackendError.
int device_index(const std::string& device);

}  // namespace flowturbo
