#pragma once

#include <cstdint>

// One formula for the GPU's compiler and for the host's, which has no such words.
#ifdef __CUDACC__
#define FLOWTURBO_HOST_DEVICE __host__ __device__
#else
#define FLOWTURBO_HOST_DEVICE
#endif

namespace flowturbo {

/// A register in a device's memory: (rows, halves, elements), where a state has one half.
struct RegisterView {
  float* data = nullptr;
  std::int32_t halves = 1;
};

/// coefficient · source, `first` to `last` of a sum that goes to `out`.
struct SumTerm {
  RegisterView source;
  RegisterView out;
  float coefficient = 0;
  bool first = false;
  bool last = false;
};

/// As many as fit the 4 KiB that every GPU takes as arguments.
constexpr std::int32_t max_terms = 96;

/// The sums between two evaluations, in order, as one launch.
struct Combination {
  std::int64_t rows = 0;
  std::int64_t elements = 0;
  std::int32_t count = 0;
  SumTerm terms[max_terms];  // not a std::array, whose functions are the host's alone
};
static_assert(sizeof(Combination) <= 4096);

/// Form the sum that begins at term `begin`, for one element of one row and half; return where it ends.
/// Into a state, whose only half is 0, a velocity counts with its conditional half, which is 0 as well.
FLOWTURBO_HOST_DEVICE inline std::int32_t sum_terms(const Combination& combination, std::int32_t begin,
                                                    std::int64_t row, std::int32_t half,
                                                    std::int64_t element) {
  float sum = 0;
  for (std::int32_t index = begin;; ++index) {
    const SumTerm& term = combination.terms[index];
    const std::int64_t from = (row * term.source.halves + half) * combination.elements + element;
    const float product = term.coefficient * term.source.data[from];
    sum = term.first ? product : sum + product;
    if (term.last) {
      term.out.data[(row * term.out.halves + half) * combination.elements + element] = sum;
      return index + 1;
    }
  }
}

/// Do all sums for one element of one row, in all halves: what a sum reads of those before it, the same
/// thread has written.
FLOWTURBO_HOST_DEVICE inline void combine_element(const Combination& combination, std::int64_t row,
                                                  std::int64_t element) {
  for (std::int32_t begin = 0; begin < combination.count;) {
    const std::int32_t halves = combination.terms[begin].out.halves;
    std::int32_t end = begin;
    for (std::int32_t half = 0; half < halves; ++half) {
      end = sum_terms(combination, begin, row, half, element);
    }
    begin = end;
  }
}

}  // namespace flowturbo
