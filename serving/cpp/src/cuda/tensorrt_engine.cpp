#include "tensorrt_engine.hpp"

#include <algorithm>

#include "device_backend.hpp"
#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

bool is_dtype(ElementType type, const std::string& dtype) {
  switch (type) {
    case ElementType::float32:
      return dtype == "float32";
    case ElementType::int64:
      return dtype == "int64";
    case ElementType::uint8:
      return dtype == "uint8";
  }
  return false;
}

}  // namespace

TensorRtEngine::TensorRtEngine(const TensorRtPlan& plan, CudaDevice& device, std::int64_t rows, void* scratch,
                               std::size_t scratch_bytes)
    : plan_(plan), device_(device), rows_(rows), config_(plan.loaded().createRuntimeConfig()) {
  if (!config_) plan_.fail("makes no runtime configuration");
  configure();
  context_.reset(plan_.loaded().createExecutionContext(config_.get()));
  if (!context_) plan_.fail(message("cannot make a context for ", rows, " rows"));
  // Naming layers in every call takes time, and nobody asked for the names.
  context_->setNvtxVerbosity(nvinfer1::ProfilingVerbosity::kNONE);
  if (!context_->setOptimizationProfileAsync(plan_.profile(rows), device_.stream())) {
    plan_.fail(message("cannot select the profile of ", rows, " rows"));
  }
  for (const Tensor& tensor : plan_.described().inputs) {
    if (!context_->setInputShape(tensor.name.c_str(), dims_of(tensor, rows))) {
      plan_.fail(message("refuses ", tensor.name, " of ", rows, " rows"));
    }
  }
  context_->setDeviceMemoryV2(scratch, static_cast<std::int64_t>(scratch_bytes));
  for (const Tensor& tensor : plan_.described().outputs) {
    if (!equal(context_->getTensorShape(tensor.name.c_str()), dims_of(tensor, rows))) {
      plan_.fail(message("gives ", tensor.name, " a shape that the manifest does not"));
    }
  }
  // Choosing a profile may have copied something.
  device_.synchronize();
}

void TensorRtEngine::configure() {
  config_->setExecutionContextAllocationStrategy(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
#ifdef TRT_MAJOR_RTX
  // Whole trajectories are captured, and a capture cannot hold another.
  if (!config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kDISABLED)) {
    plan_.fail("cannot leave captures to the caller");
  }
  // Kernels compiled in the background come too late for a graph, which keeps the slow ones.
  config_->setDynamicShapesKernelSpecializationStrategy(
      nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
#endif
}

std::function<void()> TensorRtEngine::bind(const Arrays& inputs, const Arrays& outputs) {
  const Engine& described = plan_.described();
  std::map<std::string, void*> addresses;
  for (const Tensor& tensor : described.inputs) {
    check_array(tensor, inputs);
    addresses[tensor.name] = inputs.at(tensor.name).data;
  }
  for (const Tensor& tensor : described.outputs) {
    check_array(tensor, outputs);
    addresses[tensor.name] = outputs.at(tensor.name).data;
  }
  return [this, addresses = std::move(addresses)] { call(addresses); };
}

void TensorRtEngine::check_array(const Tensor& tensor, const Arrays& given) const {
  const auto found = given.find(tensor.name);
  const nvinfer1::Dims dims = dims_of(tensor, rows_);
  if (found == given.end() || !is_dtype(found->second.type, tensor.dtype) ||
      !std::equal(found->second.shape.begin(), found->second.shape.end(), dims.d, dims.d + dims.nbDims)) {
    throw BundleError(message(plan_.described().name(), ": ", tensor.name, " is not what a program of ",
                              rows_, " rows gives or takes; rebuild the bundle"));
  }
}

void TensorRtEngine::call(const std::map<std::string, void*>& addresses) const {
  for (const auto& [name, address] : addresses) {
    if (!context_->setTensorAddress(name.c_str(), address)) {
      plan_.fail(message("refuses the address of ", name));
    }
  }
  if (!context_->enqueueV3(device_.stream())) plan_.fail("cannot run it");
}

TensorRtEngines::TensorRtEngines(const Bundle& bundle, CudaDevice& device)
    : bundle_(bundle), device_(device), runtime_(nvinfer1::createInferRuntime(log_)) {
  if (!runtime_) {
    throw BackendError(message(tensorrt_backend, " does not start: ", log_.last(),
                               "; install the latest NVIDIA driver, or choose the backend onnxruntime"));
  }
}

void TensorRtEngines::load(const EngineName& name) {
  for (const Engine& engine : bundle_.manifest().engines) {
    if (EngineName(engine.network, engine.variant) == name && engine.backend == tensorrt_backend) {
      plan(engine);
    }
  }
}

std::unique_ptr<DeviceEngine> TensorRtEngines::open(const EngineName& name, std::int64_t rows) {
  const Manifest& manifest = bundle_.manifest();
  const TensorRtPlan& found = plan(manifest.engine(name.first, name.second, tensorrt_backend, rows));
  void* memory = scratch();
  return std::make_unique<TensorRtEngine>(found, device_, rows, memory, scratch_bytes_);
}

const TensorRtPlan& TensorRtEngines::plan(const Engine& described) {
  std::unique_ptr<TensorRtPlan>& found = plans_[described.file];
  if (!found) found = std::make_unique<TensorRtPlan>(*runtime_, log_, bundle_, described, device_);
  return *found;
}

/// Return scratch memory that does for every plan loaded so far.
void* TensorRtEngines::scratch() {
  std::size_t needed = 1;
  for (const auto& [file, plan] : plans_) needed = std::max(needed, plan ? plan->scratch_bytes() : 0);
  if (needed > scratch_bytes_) {
    scratch_.push_back(allocate(device_, needed));
    scratch_bytes_ = needed;
  }
  return scratch_.back().get();
}

std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const LoadOptions& options) {
  auto device = std::make_unique<CudaDevice>(device_index(options.device));
  auto engines = std::make_unique<TensorRtEngines>(bundle, *device);
  return std::make_unique<DeviceBackend>(bundle.manifest(), std::move(device), std::move(engines));
}

}  // namespace flowturbo
