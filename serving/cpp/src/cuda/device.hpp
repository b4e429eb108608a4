#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "combine.hpp"
#include "conditioning.hpp"
#include "layout.hpp"

namespace flowturbo {

/// Captured work, to be launched again and again; it ends before its device does.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
};

/// One GPU and one stream: what a trajectory asks of them, one thread at a time. Throws BackendError.
///
/// What says "ask" returns before the work is done, and work is done in the order it was asked for: memory
/// that it reads or writes must stay as it is until `synchronize`. The tests answer with an emulation in
/// host memory that keeps this order and promises nothing else.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;
  /// The compute capability, e.g. "9.0".
  virtual std::string capability() const = 0;
  /// Let the calling thread use the device; all that follows needs it.
  virtual void make_current() = 0;

  /// Allocate memory that begins at a multiple of `alignment`: on the device, or pinned on the host, where
  /// copies reach it without the CPU.
  virtual void* allocate(std::size_t size) = 0;
  virtual void* allocate_pinned(std::size_t size) = 0;
  virtual void free(void* memory) noexcept = 0;
  virtual void free_pinned(void* memory) noexcept = 0;

  /// Ask for a copy from or to pinned memory.
  virtual void upload(void* target, const void* source, std::size_t size) = 0;
  virtual void download(void* target, const void* source, std::size_t size) = 0;
  /// Ask for sums.
  virtual void combine(const Combination& combination) = 0;

  /// Return the graph of what `work` asks for, without doing it. `work` must not wait, allocate or free;
  /// what it throws is thrown on after the capture has ended.
  virtual std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work) = 0;
  /// Ask for the work of a graph.
  virtual void launch(const DeviceGraph& graph) = 0;

  /// Wait for all that was asked for.
  virtual void synchronize() = 0;
};

/// An engine at one number of rows, for the calls of one trajectory.
class DeviceEngine {
 public:
  virtual ~DeviceEngine() = default;
  /// Fix the arrays of a call; the result asks for it. The engine outlives it.
  virtual std::function<void()> bind(const Arrays& inputs, const Arrays& outputs) = 0;
};

/// The engines of a bundle on a device. Throws BundleError, BackendError.
class DeviceEngines {
 public:
  virtual ~DeviceEngines() = default;

  /// The backend that they are for, as manifests name it.
  virtual std::string backend() const = 0;
  /// Load the engines of a network variant, for all batch sizes.
  virtual void load(const EngineName& name) = 0;
  /// Return an engine to be called on `rows` rows.
  virtual std::unique_ptr<DeviceEngine> open(const EngineName& name, std::int64_t rows) = 0;
};

}  // namespace flowturbo
