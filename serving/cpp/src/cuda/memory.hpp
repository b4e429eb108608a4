#pragma once

#include <cstddef>
#include <memory>

#include "device.hpp"

namespace flowturbo {

template <void (Device::*release)(void*) noexcept>
struct Release {
  Device* device = nullptr;
  void operator()(void* memory) const noexcept { (device->*release)(memory); }
};

/// Memory on a device, or pinned on the host, that is freed with its owner.
using DeviceMemory = std::unique_ptr<void, Release<&Device::free>>;
using PinnedMemory = std::unique_ptr<void, Release<&Device::free_pinned>>;

inline DeviceMemory allocate(Device& device, std::size_t size) { return {device.allocate(size), {&device}}; }

inline PinnedMemory allocate_pinned(Device& device, std::size_t size) {
  return {device.allocate_pinned(size), {&device}};
}

}  // namespace flowturbo
