#include "tensorrt_plan.hpp"

#include <algorithm>
#include <fstream>
#include <vector>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

std::vector<char> read(const Bundle& bundle, const std::string& file) {
  std::vector<char> content(bundle.manifest().files.at(file).bytes);
  std::ifstream stream(bundle.file(file), std::ios::binary);
  if (!stream.read(content.data(), static_cast<std::streamsize>(content.size()))) {
    throw BundleError(message(in_quotes(file), " cannot be read; copy the bundle anew"));
  }
  return content;
}

const char* name_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return "float32";
    case nvinfer1::DataType::kINT64:
      return "int64";
    case nvinfer1::DataType::kUINT8:
      return "uint8";
    default:
      return "a type that no bundle has";
  }
}

/// Whether a plan's shape is a tensor's, where -1 stands for any batch.
bool fits(const nvinfer1::Dims& found, const Tensor& tensor) {
  if (static_cast<std::size_t>(found.nbDims) != tensor.shape.size()) return false;
  for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    // With one profile the batch may have become a constant; an output's axis is known once inputs are.
    if (tensor.shape[axis] && found.d[axis] != -1 && found.d[axis] != *tensor.shape[axis]) return false;
  }
  return true;
}

}  // namespace

void TensorRtLog::log(Severity severity, const char* text) noexcept {
  if (severity > Severity::kERROR) return;
  try {
    const std::lock_guard lock(mutex_);
    last_ = one_line(text);
  } catch (...) {
    // Without memory for the reason, the failure is told without it.
  }
}

std::string TensorRtLog::last() const {
  const std::lock_guard lock(mutex_);
  return last_.empty() ? "it gave no reason" : last_;
}

TensorRtPlan::TensorRtPlan(nvinfer1::IRuntime& runtime, const TensorRtLog& log, const Bundle& bundle,
                           const Engine& described, const CudaDevice& device)
    : log_(log), described_(described) {
  const std::vector<char> content = read(bundle, described.file);
  loaded_.reset(runtime.deserializeCudaEngine(content.data(), content.size()));
  if (!loaded_) {
    fail(message("cannot load ", described.file, " on ", device.name(), " (compute capability ",
                 device.capability(), ")"));
  }
  check_interface();
}

std::int32_t TensorRtPlan::profile(std::int64_t rows) const {
  const auto& batches = described_.batches;
  const auto found = std::find(batches.begin(), batches.end(), rows);
  if (found == batches.end()) {
    throw BackendError(message(described_.name(), ": ", described_.file, " has batches ", listed(batches),
                               ", not ", rows, "; rebuild the bundle with --batch ", rows));
  }
  return static_cast<std::int32_t>(found - batches.begin());
}

std::size_t TensorRtPlan::scratch_bytes() const {
  return static_cast<std::size_t>(loaded_->getDeviceMemorySizeV2());
}

void TensorRtPlan::fail(const std::string& what) const {
  throw BackendError(message(described_.name(), ": ", tensorrt_backend, " ", what, ": ", log_.last(),
                             "; rebuild the bundle with the TensorRT and for the GPU that are here"));
}

void TensorRtPlan::check_interface() const {
  const std::size_t profiles = static_cast<std::size_t>(loaded_->getNbOptimizationProfiles());
  const std::size_t tensors = static_cast<std::size_t>(loaded_->getNbIOTensors());
  if (profiles != described_.batches.size() ||
      tensors != described_.inputs.size() + described_.outputs.size()) {
    throw BundleError(message(described_.name(), ": ", described_.file, " has ", profiles, " profiles and ",
                              tensors, " tensors, others than the manifest says; rebuild the bundle"));
  }
  for (const Tensor& tensor : described_.inputs) check_tensor(tensor, nvinfer1::TensorIOMode::kINPUT);
  for (const Tensor& tensor : described_.outputs) check_tensor(tensor, nvinfer1::TensorIOMode::kOUTPUT);
}

void TensorRtPlan::check_tensor(const Tensor& tensor, nvinfer1::TensorIOMode mode) const {
  const char* name = tensor.name.c_str();
  // Of a name that it does not know the mode is neither.
  if (loaded_->getTensorIOMode(name) != mode || name_of(loaded_->getTensorDataType(name)) != tensor.dtype ||
      !fits(loaded_->getTensorShape(name), tensor)) {
    throw BundleError(message(described_.name(), ": ", tensor.name, " is another in ", described_.file,
                              " than in the manifest; rebuild the bundle"));
  }
  if (mode != nvinfer1::TensorIOMode::kINPUT) return;
  using nvinfer1::OptProfileSelector;
  for (const std::int64_t rows : described_.batches) {
    for (const auto bound : {OptProfileSelector::kMIN, OptProfileSelector::kMAX}) {
      if (!equal(loaded_->getProfileShape(name, profile(rows), bound), dims_of(tensor, rows))) {
        throw BundleError(message(described_.name(), ": ", described_.file, " was not made for ", tensor.name,
                                  " of ", rows, " rows; rebuild the bundle"));
      }
    }
  }
}

nvinfer1::Dims dims_of(const Tensor& tensor, std::int64_t rows) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(tensor.shape.size());
  for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    dims.d[axis] = tensor.shape[axis].value_or(rows);
  }
  return dims;
}

bool equal(const nvinfer1::Dims& one, const nvinfer1::Dims& other) {
  return one.nbDims == other.nbDims && std::equal(one.d, one.d + one.nbDims, other.d);
}

}  // namespace flowturbo
