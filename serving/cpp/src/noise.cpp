#include "noise.hpp"

#include <array>
#include <cmath>

namespace flowturbo {
namespace {

constexpr double two_pi = 6.283185307179586;
// 2⁻⁵³, the step of the uniforms.
constexpr double unit = 1.0 / 9007199254740992.0;

struct Product {
  std::uint64_t high;
  std::uint64_t low;
};

/// The 128 bits of a product, in halves of 32 so that every compiler can.
Product multiply(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t mask = 0xFFFFFFFF;
  const std::uint64_t low = (a & mask) * (b & mask);
  const std::uint64_t middle = (a >> 32U) * (b & mask) + (low >> 32U);
  const std::uint64_t other = (a & mask) * (b >> 32U) + (middle & mask);
  return {(a >> 32U) * (b >> 32U) + (middle >> 32U) + (other >> 32U), a * b};
}

/// Philox4x64-10 (Salmon et al., 2011, Random123) with key (seed, 0), block by block.
class Philox {
 public:
  explicit Philox(std::uint64_t seed) : seed_(seed) {}

  std::uint64_t operator()() {
    if (used_ == block_.size()) {
      next_block();
      used_ = 0;
    }
    return block_[used_++];
  }

 private:
  void next_block() {
    // No seed has more than 2⁶⁴ blocks, so that the other words of the counter stay 0.
    block_ = {++counter_, 0, 0, 0};
    std::uint64_t key0 = seed_;
    std::uint64_t key1 = 0;
    for (int round = 0; round < 10; ++round) {
      const Product a = multiply(0xD2E7470EE14C6C93, block_[0]);
      const Product b = multiply(0xCA5A826395121157, block_[2]);
      block_ = {b.high ^ block_[1] ^ key0, b.low, a.high ^ block_[3] ^ key1, a.low};
      key0 += 0x9E3779B97F4A7C15;
      key1 += 0xBB67AE8584CAA73B;
    }
  }

  std::uint64_t seed_;
  std::uint64_t counter_ = 0;
  std::array<std::uint64_t, 4> block_{};
  std::size_t used_ = 4;
};

/// The upper 53 bits: all that a float64 holds.
double upper_bits(std::uint64_t raw) { return static_cast<double>(raw >> 11U); }

}  // namespace

void fill_raw(std::uint64_t seed, std::uint64_t* out, std::size_t count) {
  Philox draw(seed);
  for (std::size_t index = 0; index < count; ++index) out[index] = draw();
}

void fill_noise(std::uint64_t seed, float* out, std::size_t count) {
  Philox draw(seed);
  for (std::size_t index = 0; index < count; index += 2) {
    // The radius' uniform is in (0, 1], so that its logarithm is finite.
    const double radius = std::sqrt(-2.0 * std::log((upper_bits(draw()) + 1.0) * unit));
    const double angle = two_pi * (upper_bits(draw()) * unit);
    out[index] = static_cast<float>(radius * std::cos(angle));
    if (index + 1 < count) out[index + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

}  // namespace flowturbo
