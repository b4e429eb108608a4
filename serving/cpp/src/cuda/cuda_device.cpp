#include "cuda_device.hpp"

#include <charconv>

#include "combine_launch.hpp"
#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

const char* remedy(cudaError_t result) {
  switch (result) {
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
      return "nvidia-smi and CUDA_VISIBLE_DEVICES say which GPUs there are";
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
      return "install the latest NVIDIA driver, or choose the backend onnxruntime";
    case cudaErrorNoKernelImageForDevice:
      return "build the library with this GPU in CMAKE_CUDA_ARCHITECTURES";
    case cudaErrorDevicesUnavailable:
      return "another process has the GPU to itself: end that, or change the compute mode";
    case cudaErrorMemoryAllocation:
      return "end what else uses the GPU, or use a smaller batch";
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
      return "nothing can run on the GPU in this process any more: start it again";
    default:
      return "see CUDA's documentation of this error";
  }
}

class CudaGraph : public DeviceGraph {
 public:
  explicit CudaGraph(cudaGraphExec_t executable) : executable_(executable) {}
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }

  cudaGraphExec_t executable() const { return executable_; }

 private:
  cudaGraphExec_t executable_;
};

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const noexcept { cudaGraphDestroy(graph); }
};
using CapturedGraph = std::unique_ptr<CUgraph_st, DestroyGraph>;

/// Ends a capture, whether its work threw or not: a stream left capturing can do nothing else.
CapturedGraph capture_graph(cudaStream_t stream, const std::function<void()>& work) {
  // What other threads ask of CUDA meanwhile is their own affair.
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "beginning a capture");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    const CapturedGraph discarded(graph);
    // What the capture failed with would be taken for the next call's failure.
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "capturing a trajectory");
  return CapturedGraph(graph);
}

}  // namespace

void check_cuda(cudaError_t result, const std::string& asked) {
  if (result != cudaSuccess) {
    cudaGetLastError();
    throw BackendError(message("cuda: ", asked, ": ", cudaGetErrorName(result), " (",
                               cudaGetErrorString(result), "); ", remedy(result)));
  }
}

CudaDevice::CudaDevice(int index) : index_(index) {
  make_current();
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index_), "reading the GPU's properties");
  name_ = properties.name;
  capability_ = message(properties.major, ".", properties.minor);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}

CudaDevice::~CudaDevice() { cudaStreamDestroy(stream_); }

void CudaDevice::make_current() {
  check_cuda(cudaSetDevice(index_), message("opening the device cuda:", index_));
}

void* CudaDevice::allocate(std::size_t size) {
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, size);
  if (result != cudaSuccess) {
    std::size_t free = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&free, &total);
    check_cuda(result,
               message("allocating ", size, " bytes, with ", free, " of ", total, " free on ", name_));
  }
  return memory;
}

void* CudaDevice::allocate_pinned(std::size_t size) {
  void* memory = nullptr;
  check_cuda(cudaMallocHost(&memory, size), message("allocating ", size, " bytes of pinned host memory"));
  return memory;
}

void CudaDevice::free(void* memory) noexcept { cudaFree(memory); }

void CudaDevice::free_pinned(void* memory) noexcept { cudaFreeHost(memory); }

void CudaDevice::upload(void* target, const void* source, std::size_t size) {
  check_cuda(cudaMemcpyAsync(target, source, size, cudaMemcpyHostToDevice, stream_), "copying inputs");
}

void CudaDevice::download(void* target, const void* source, std::size_t size) {
  check_cuda(cudaMemcpyAsync(target, source, size, cudaMemcpyDeviceToHost, stream_), "copying results");
}

void CudaDevice::combine(const Combination& combination) {
  check_cuda(launch_combination(combination, stream_), "launching sums");
}

std::unique_ptr<DeviceGraph> CudaDevice::capture(const std::function<void()>& work) {
  const CapturedGraph captured = capture_graph(stream_, work);
  cudaGraphExec_t executable = nullptr;
  check_cuda(cudaGraphInstantiate(&executable, captured.get(), 0), "instantiating a trajectory's graph");
  auto graph = std::make_unique<CudaGraph>(executable);
  // Or the first launch would do it.
  check_cuda(cudaGraphUpload(executable, stream_), "uploading a trajectory's graph");
  return graph;
}

void CudaDevice::launch(const DeviceGraph& graph) {
  const auto& captured = dynamic_cast<const CudaGraph&>(graph);
  check_cuda(cudaGraphLaunch(captured.executable(), stream_), "launching a trajectory");
}

void CudaDevice::synchronize() { check_cuda(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

int device_index(const std::string& device) {
  if (device.empty() || device == "cuda") return 0;
  int index = -1;
  if (device.rfind("cuda:", 0) == 0) {
    const char* end = device.data() + device.size();
    const auto [rest, error] = std::from_chars(device.data() + 5, end, index);
    index = error == std::errc() && rest == end ? index : -1;
  }
  if (index < 0) {
    throw BackendError(message("device ", in_quotes(device),
                               ": expected cuda or cuda:N; TensorRT runs on NVIDIA GPUs"));
  }
  return index;
}

}  // namespace flowturbo
