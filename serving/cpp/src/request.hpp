#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"

namespace flowturbo {

/// What a caller asks for, one value per row once checked.
struct Request {
  std::vector<std::int64_t> labels;
  std::vector<std::uint64_t> seeds;
  std::vector<float> guidance;

  std::size_t size() const { return labels.size(); }
  /// Whether guidance is 1 everywhere, where the unguided variant computes the same.
  bool is_unguided() const;
  /// Write `used` rows from row `first` on into the inputs of a batch; the rows past them are padding.
  void write(std::size_t first, std::size_t used, std::size_t batch, std::size_t latent,
             const Inputs& inputs) const;
};

/// Check everything a caller gave, and fill in the defaults; throws RequestError.
Request make_request(const Model& model, const std::vector<std::int64_t>& labels,
                     const std::vector<std::uint64_t>& seeds, const std::vector<float>& guidance);

/// Return the variant that serves a request with guidance, or without any; throws RequestError.
std::string choose_variant(const Manifest& manifest, bool is_unguided);

/// Return the program of a schedule (empty: the default) that generates from noise; throws ScheduleError.
const Program& find_program(const Manifest& manifest, const std::string& schedule,
                            const std::string& variant);

}  // namespace flowturbo
