#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "bundle.hpp"
#include "flowturbo/pipeline.hpp"
#include "program.hpp"

namespace flowturbo {

/// Host memory that a request is written into: noise (B,C,H,W), conditions (B) in the manifest's order,
/// guidance (B).
struct Inputs {
  float* noise = nullptr;
  std::vector<std::int64_t*> conditions;
  float* guidance = nullptr;
};

/// A program bound to engines and memory for a batch: fill `inputs`, `run`, read the results, in one thread
/// at a time.
class Trajectory {
 public:
  virtual ~Trajectory() = default;

  /// What the next run reads: ask anew for every run.
  virtual Inputs inputs() = 0;
  /// Run the program on the inputs, with `decode` to images; over on return. Throws BackendError.
  virtual void run(bool decode) = 0;
  /// The last run's latents (B,C,H,W), until the next one.
  virtual const float* latents() = 0;
  /// The last run's images (B,H,W,3), until the next one; only if it decoded.
  virtual const std::uint8_t* images() = 0;
};

/// The engines of one bundle on one device, loaded when first needed. Trajectories refer to their backend
/// and program, which outlive them.
class Backend {
 public:
  virtual ~Backend() = default;

  /// Load the engines that a program needs, and the decoder's. Throws BundleError, BackendError.
  virtual void prepare(const Program& program) = 0;
  /// Bind a program to memory and engines at a batch size. Throws BundleError, BackendError.
  virtual std::unique_ptr<Trajectory> bind(const Program& program, std::int64_t batch) = 0;
};

/// Open ONNX Runtime on the CPU; the bundle outlives the backend. Throws BackendError.
std::unique_ptr<Backend> open_onnxruntime(const Bundle& bundle, const LoadOptions& options);

/// Open TensorRT or TensorRT-RTX on a GPU, whichever the library was built with (src/cuda); the bundle
/// outlives the backend. Throws BackendError.
std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const LoadOptions& options);

}  // namespace flowturbo
