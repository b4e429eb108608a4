#pragma once

#include <cstddef>
#include <vector>

#include "layout.hpp"

namespace flowturbo {

/// A sum over host arrays: from the left, each product and sum rounded to float32. Into a state, a velocity
/// counts with its conditional half.
class HostSum {
 public:
  HostSum(const Sum& sum, const Arrays& arrays);

  void operator()() const;

 private:
  struct Operand {
    float coefficient;
    const float* rows;
    std::size_t stride;
  };

  float* out_;
  std::size_t batch_;
  std::size_t row_;
  std::vector<Operand> terms_;
};

}  // namespace flowturbo
