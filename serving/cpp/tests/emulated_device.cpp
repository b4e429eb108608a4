#include "emulated_device.hpp"

#include <cstdint>
#include <cstring>
#include <utility>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

/// As a float too large to calculate with, as a label out of every range.
constexpr int poison = 0x7F;

template <typename Allocations>
void require(const Allocations& known, const void* memory, std::size_t size, const char* what) {
  const auto* begin = static_cast<const std::byte*>(memory);
  auto found = known.upper_bound(begin);
  if (found == known.begin()) throw BackendError(message(what, ": memory that does not exist"));
  --found;
  if (begin + size > found->first + found->second.size) {
    throw BackendError(message(what, ": memory that does not exist"));
  }
}

}  // namespace

struct EmulatedDevice::Graph : DeviceGraph {
  std::shared_ptr<Queue> work = std::make_shared<Queue>();
};

void EmulatedDevice::ask(std::function<void()> work) {
  if (capture_ != nullptr) {
    capture_->push_back(std::move(work));
    return;
  }
  ++counters_.pieces;
  if (policy_ == Policy::eager) {
    work();
  } else {
    queue_.push_back(std::move(work));
  }
}

void EmulatedDevice::require_device(const void* memory, std::size_t size) const {
  require(device_, memory, size, "device");
}

void* EmulatedDevice::allocate(std::size_t size) { return add(device_, size); }

void* EmulatedDevice::allocate_pinned(std::size_t size) { return add(pinned_, size); }

void EmulatedDevice::free(void* memory) noexcept { remove(device_, memory); }

void EmulatedDevice::free_pinned(void* memory) noexcept { remove(pinned_, memory); }

void EmulatedDevice::upload(void* target, const void* source, std::size_t size) {
  ask([=] {
    require(device_, target, size, "upload to");
    require(pinned_, source, size, "upload from");
    std::memcpy(target, source, size);
  });
}

void EmulatedDevice::download(void* target, const void* source, std::size_t size) {
  ask([=] {
    require(pinned_, target, size, "download to");
    require(device_, source, size, "download from");
    std::memcpy(target, source, size);
  });
}

void EmulatedDevice::combine(const Combination& combination) {
  ask([this, combination] {
    const std::int64_t count = combination.rows * combination.elements;
    for (std::int32_t index = 0; index < combination.count; ++index) {
      const SumTerm& term = combination.terms[index];
      for (const RegisterView& view : {term.source, term.out}) {
        require_device(view.data, static_cast<std::size_t>(count * view.halves) * sizeof(float));
      }
    }
    for (std::int64_t index = 0; index < count; ++index) {
      combine_element(combination, index / combination.elements, index % combination.elements);
    }
  });
}

std::unique_ptr<DeviceGraph> EmulatedDevice::capture(const std::function<void()>& work) {
  require_outside_capture("capturing");
  ++counters_.captures;
  auto graph = std::make_unique<Graph>();
  capture_ = graph->work.get();
  try {
    work();
  } catch (...) {
    capture_ = nullptr;
    throw;
  }
  capture_ = nullptr;
  return graph;
}

void EmulatedDevice::launch(const DeviceGraph& graph) {
  require_outside_capture("launching a graph");
  ++counters_.graph_launches;
  const std::weak_ptr<Queue> work = dynamic_cast<const Graph&>(graph).work;
  ask([work] {
    const std::shared_ptr<Queue> alive = work.lock();
    if (!alive) throw BackendError("a graph ended before it ran");
    for (const auto& piece : *alive) piece();
  });
}

void EmulatedDevice::synchronize() {
  require_outside_capture("waiting");
  while (!queue_.empty()) {
    const std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    work();
  }
}

void* EmulatedDevice::add(Allocations& to, std::size_t size) {
  require_outside_capture("allocating");
  if (size == 0) throw BackendError("allocating nothing");
  Memory memory{std::make_unique<std::byte[]>(size + alignment), size};
  const auto address = reinterpret_cast<std::uintptr_t>(memory.bytes.get());
  std::byte* begin = memory.bytes.get() + (alignment - address % alignment) % alignment;
  std::memset(begin, poison, size);
  to.emplace(begin, std::move(memory));
  ++counters_.allocations;
  ++counters_.live_allocations;
  return begin;
}

void EmulatedDevice::remove(Allocations& from, void* memory) noexcept {
  auto node = from.extract(static_cast<const std::byte*>(memory));
  if (node.empty()) std::terminate();
  std::memset(memory, poison, node.mapped().size);
  freed_.push_back(std::move(node.mapped()));
  --counters_.live_allocations;
}

void EmulatedDevice::require_outside_capture(const char* what) const {
  if (capture_ != nullptr) throw BackendError(message(what, " during a capture"));
}

}  // namespace flowturbo
