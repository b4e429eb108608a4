#include "combinations.hpp"

#include <utility>

namespace flowturbo {
namespace {

/// Lines up terms in launches; a sum that does not fit goes on in the next with what it gave so far.
class Terms {
 public:
  Terms(std::int64_t rows, std::int64_t elements) {
    empty_.rows = rows;
    empty_.elements = elements;
  }

  void add(const SumTerm& term) {
    if (launches_.empty() || launches_.back().count == max_terms) start(term);
    append(term);
  }

  std::vector<Combination> take() { return std::move(launches_); }

 private:
  void start(const SumTerm& next) {
    const bool goes_on = !launches_.empty() && !next.first;
    if (goes_on) launches_.back().terms[max_terms - 1].last = true;
    launches_.push_back(empty_);
    if (goes_on) append({next.out, next.out, 1.0F, true, false});
  }

  void append(const SumTerm& term) {
    Combination& launch = launches_.back();
    launch.terms[launch.count++] = term;
  }

  Combination empty_;
  std::vector<Combination> launches_;
};

}  // namespace

std::vector<Combination> combinations(const std::vector<Sum>& sums, const LaunchPlan& plan,
                                      const Model& model, std::int64_t batch, const Arrays& arrays) {
  const auto [channels, height, width] = model.latent;
  const auto view = [&](std::size_t slot) {
    const bool has_halves = plan.slots[slot] == RegisterType::guided_velocity;
    const auto halves = static_cast<std::int32_t>(has_halves ? model.guidance.halves : 1);
    return RegisterView{static_cast<float*>(arrays.at(buffer_name(slot)).data), halves};
  };
  Terms terms(batch, channels * height * width);
  for (const Sum& sum : sums) {
    const RegisterView out = view(sum.out);
    for (std::size_t index = 0; index < sum.terms.size(); ++index) {
      const auto& [coefficient, slot] = sum.terms[index];
      terms.add({view(slot), out, coefficient, index == 0, index + 1 == sum.terms.size()});
    }
  }
  return terms.take();
}

}  // namespace flowturbo
