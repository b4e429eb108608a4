#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include <NvInferRuntime.h>

#include "bundle.hpp"
#include "cuda_device.hpp"

namespace flowturbo {

/// The flavour of TensorRT that the library is built with, as manifests name it.
inline constexpr const char* tensorrt_backend = FLOWTURBO_TENSORRT_BACKEND;

/// Keeps the last error that TensorRT reports: most of its failures are a null or false beside it.
class TensorRtLog : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override;
  std::string last() const;

 private:
  mutable std::mutex mutex_;
  std::string last_;
};

/// An engine of the manifest as a loaded plan: weights on the device, one profile for each batch size.
class TensorRtPlan {
 public:
  /// Load a plan and hold it against the manifest. All of them outlive it. Throws BundleError, BackendError.
  TensorRtPlan(nvinfer1::IRuntime& runtime, const TensorRtLog& log, const Bundle& bundle,
               const Engine& described, const CudaDevice& device);

  const Engine& described() const { return described_; }
  nvinfer1::ICudaEngine& loaded() const { return *loaded_; }

  /// The profile of a batch size; throws BackendError where there is none.
  std::int32_t profile(std::int64_t rows) const;
  /// Bytes that a call needs and does not keep, whatever the batch size.
  std::size_t scratch_bytes() const;
  /// Throw BackendError for what TensorRT has just failed to do, with its reason.
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void check_interface() const;
  void check_tensor(const Tensor& tensor, nvinfer1::TensorIOMode mode) const;

  const TensorRtLog& log_;
  const Engine& described_;
  std::unique_ptr<nvinfer1::ICudaEngine> loaded_;
};

/// The shape of a tensor for some rows.
nvinfer1::Dims dims_of(const Tensor& tensor, std::int64_t rows);
bool equal(const nvinfer1::Dims& one, const nvinfer1::Dims& other);

}  // namespace flowturbo
