#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "memory.hpp"
#include "tensorrt_plan.hpp"

namespace flowturbo {

/// A plan's context for some rows. Its scratch memory may be shared with contexts that never run at once.
class TensorRtEngine : public DeviceEngine {
 public:
  /// The plan, the scratch memory of at least its `scratch_bytes` and the device outlive the engine.
  TensorRtEngine(const TensorRtPlan& plan, CudaDevice& device, std::int64_t rows, void* scratch,
                 std::size_t scratch_bytes);

  std::function<void()> bind(const Arrays& inputs, const Arrays& outputs) override;

 private:
  void configure();
  void check_array(const Tensor& tensor, const Arrays& given) const;
  void call(const std::map<std::string, void*>& addresses) const;

  const TensorRtPlan& plan_;
  CudaDevice& device_;
  std::int64_t rows_;
  std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

/// A bundle's plans. All contexts work in one scratch memory, since one stream runs them one after the
/// other.
class TensorRtEngines : public DeviceEngines {
 public:
  /// The bundle and the device outlive the engines. Throws BackendError where TensorRT does not start.
  TensorRtEngines(const Bundle& bundle, CudaDevice& device);

  std::string backend() const override { return tensorrt_backend; }
  void load(const EngineName& name) override;
  std::unique_ptr<DeviceEngine> open(const EngineName& name, std::int64_t rows) override;

 private:
  const TensorRtPlan& plan(const Engine& described);
  void* scratch();

  const Bundle& bundle_;
  CudaDevice& device_;
  TensorRtLog log_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::map<std::string, std::unique_ptr<TensorRtPlan>> plans_;
  // Smaller ones stay: graphs may hold their addresses.
  std::vector<DeviceMemory> scratch_;
  std::size_t scratch_bytes_ = 0;
};

}  // namespace flowturbo
