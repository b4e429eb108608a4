#include "sums.hpp"

namespace flowturbo {
namespace {

void scale(float coefficient, const float* from, float* to, std::size_t count) {
  for (std::size_t index = 0; index < count; ++index) to[index] = coefficient * from[index];
}

void add_scaled(float coefficient, const float* from, float* to, std::size_t count) {
  for (std::size_t index = 0; index < count; ++index) to[index] += coefficient * from[index];
}

/// How many values one row of an array has.
std::size_t row_size(const Array& array) { return array.rows(0, 1).bytes() / sizeof(float); }

}  // namespace

HostSum::HostSum(const Sum& sum, const Arrays& arrays) {
  const Array& out = arrays.at(buffer_name(sum.out));
  out_ = static_cast<float*>(out.data);
  batch_ = static_cast<std::size_t>(out.shape[0]);
  row_ = row_size(out);
  for (const ScaledBuffer& term : sum.terms) {
    const Array& array = arrays.at(buffer_name(term.slot));
    terms_.push_back({term.coefficient, static_cast<const float*>(array.data), row_size(array)});
  }
}

void HostSum::operator()() const {
  for (std::size_t row = 0; row < batch_; ++row) {
    float* const to = out_ + row * row_;
    // The result may lie where the first term does. A row of a velocity begins with its conditional half.
    const Operand& first = terms_.front();
    scale(first.coefficient, first.rows + row * first.stride, to, row_);
    for (std::size_t index = 1; index < terms_.size(); ++index) {
      const Operand& term = terms_[index];
      add_scaled(term.coefficient, term.rows + row * term.stride, to, row_);
    }
  }
}

}  // namespace flowturbo
