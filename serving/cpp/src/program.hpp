#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace flowturbo {

enum class Network { predictor, refiner };
enum class Variant { guided, unguided };
/// A state is (B,C,H,W), a velocity (B,G,C,H,W) of a variant.
enum class RegisterType { state, guided_velocity, unguided_velocity };

const char* to_string(Network network);
const char* to_string(Variant variant);
const char* to_string(RegisterType type);
RegisterType velocity_of(Variant variant);

/// Run a network's engine: out ← network(state, time[, velocity]).
struct Evaluate {
  Network network = Network::predictor;
  Variant variant = Variant::guided;
  std::size_t state = 0;
  std::optional<std::size_t> velocity;
  double time = 0;
  std::size_t out = 0;
};

struct Term {
  double coefficient = 0;
  std::size_t source = 0;
};

/// out ← c₀·r₀ + c₁·r₁ + …, summed from the left in float32. Into a state, a velocity counts with its
/// conditional half (index 0 of its axis G).
struct Combine {
  std::size_t out = 0;
  std::vector<Term> terms;
};

using Instruction = std::variant<Evaluate, Combine>;

/// The registers that an instruction reads, in order.
std::vector<std::size_t> reads(const Instruction& instruction);
/// The register that an instruction writes.
std::size_t written_by(const Instruction& instruction);

/// Where a step from t to s ends: `end` instructions are done, `state` and `velocity` are what it passes on.
struct Step {
  std::string kind;
  double t = 0;
  double s = 0;
  std::size_t end = 0;
  std::size_t state = 0;
  std::size_t velocity = 0;
};

/// What a program consists of; register inputs.at(name) is filled from outside, `output` is the result.
struct ProgramParts {
  std::vector<RegisterType> registers;
  std::map<std::string, std::size_t> inputs;
  std::vector<Instruction> instructions;
  std::vector<Step> steps;
  std::size_t output = 0;
};

/// A schedule lowered to a straight line of instructions over typed registers; valid once constructed.
class Program {
 public:
  /// Throws BundleError where the parts contradict each other (bundle/FORMAT.md, Programs).
  explicit Program(ProgramParts parts);

  const std::vector<RegisterType>& registers() const { return parts_.registers; }
  const std::vector<Instruction>& instructions() const { return parts_.instructions; }
  const std::map<std::string, std::size_t>& inputs() const { return parts_.inputs; }
  const std::vector<Step>& steps() const { return parts_.steps; }
  std::size_t output() const { return parts_.output; }
  /// The register of the initial state.
  std::size_t noise() const { return parts_.inputs.at("noise"); }

  /// The evaluations, in order.
  std::vector<Evaluate> evaluations() const;
  /// Start and end time of the trajectory.
  std::pair<double, double> span() const { return {parts_.steps.front().t, parts_.steps.back().s}; }

 private:
  ProgramParts parts_;
};

}  // namespace flowturbo
