#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.hpp"

namespace flowturbo {

/// When an emulated device works: as soon as it is asked, or not before somebody waits. A right program gives
/// the same under both.
enum class Policy { eager, lazy };

/// What was asked for so far outside of captures, and what exists now.
struct Counters {
  int pieces = 0;
  int graph_launches = 0;
  int captures = 0;
  int allocations = 0;
  int live_allocations = 0;
};

/// A device in host memory. New and freed memory is poisoned; what touches memory that is not there, copies
/// from pageable memory or allocates in a capture is an error, thrown where the host waits.
class EmulatedDevice : public Device {
 public:
  explicit EmulatedDevice(Policy policy) : policy_(policy) {}

  const Counters& counters() const { return counters_; }
  bool is_capturing() const { return capture_ != nullptr; }
  /// Let the device be asked for work of whatever kind.
  void ask(std::function<void()> work);
  /// Throw unless all bytes from an address on are the device's.
  void require_device(const void* memory, std::size_t size) const;

  std::string name() const override { return "emulated GPU"; }
  std::string capability() const override { return "9.0"; }
  void make_current() override {}
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
  using Queue = std::vector<std::function<void()>>;
  struct Graph;
  struct Memory {
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size;
  };
  using Allocations = std::map<const std::byte*, Memory>;

  void* add(Allocations& to, std::size_t size);
  void remove(Allocations& from, void* memory) noexcept;
  void require_outside_capture(const char* what) const;

  Policy policy_;
  Counters counters_;
  Allocations device_;
  Allocations pinned_;
  // Freed memory stays to be poisoned, so that no later allocation hides a stale address.
  std::vector<Memory> freed_;
  std::deque<std::function<void()>> queue_;
  Queue* capture_ = nullptr;
};

}  // namespace flowturbo
