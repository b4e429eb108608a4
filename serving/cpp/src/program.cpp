#include "program.hpp"

#include <cmath>

#include "flowturbo/error.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

/// One pass over a program; each method checks one rule.
class Validator {
 public:
  explicit Validator(const ProgramParts& program)
      : program_(program), is_written_(program.registers.size(), false) {}

  void check() {
    check_inputs();
    for (std::size_t index = 0; index < program_.instructions.size(); ++index) {
      const std::string where = message("instruction ", index);
      const Instruction& instruction = program_.instructions[index];
      std::visit([&](const auto& item) { check_instruction(item, where); }, instruction);
      write(written_by(instruction), where);
    }
    read(program_.output, "output");
    for (std::size_t index = 0; index < is_written_.size(); ++index) {
      if (!is_written_[index]) throw BundleError(message("register ", index, " is never written"));
    }
    expect(program_.output, RegisterType::state, "output");
    check_steps();
  }

 private:
  void check_inputs() {
    if (program_.inputs.count("noise") == 0) {
      throw BundleError("has no input 'noise', which every trajectory starts from");
    }
    for (const auto& [name, index] : program_.inputs) {
      expect(index, RegisterType::state, "input " + in_quotes(name));
      is_written_[index] = true;
    }
  }

  void check_instruction(const Evaluate& evaluate, const std::string& where) const {
    const RegisterType velocity = velocity_of(evaluate.variant);
    for (const std::size_t index : reads(evaluate)) read(index, where);
    expect(evaluate.state, RegisterType::state, where);
    expect(evaluate.out, velocity, where);
    if (evaluate.velocity.has_value() != (evaluate.network == Network::refiner)) {
      throw BundleError(message(where, ": ", to_string(evaluate.network),
                                evaluate.velocity ? " with a velocity" : " without a velocity"));
    }
    if (evaluate.velocity) expect(*evaluate.velocity, velocity, where);
  }

  void check_instruction(const Combine& combine, const std::string& where) const {
    if (combine.terms.empty()) throw BundleError(where + ": combines nothing");
    const RegisterType out = type(combine.out, where);
    for (const Term& term : combine.terms) {
      if (!std::isfinite(term.coefficient)) {
        throw BundleError(where + ": combines with a coefficient that is not finite");
      }
      read(term.source, where);
      if (out != RegisterType::state) expect(term.source, out, where);
    }
  }

  void check_steps() const {
    if (program_.steps.empty() || program_.steps.back().end != program_.instructions.size()) {
      throw BundleError("the steps do not cover the instructions");
    }
    std::vector<bool> is_known(program_.registers.size(), false);
    for (const auto& input : program_.inputs) is_known[input.second] = true;
    std::size_t start = 0;
    for (std::size_t index = 0; index < program_.steps.size(); ++index) {
      const Step& step = program_.steps[index];
      const std::string where = message("step ", index);
      const bool joins = index == 0 || step.t == program_.steps[index - 1].s;
      const bool has_times = 0 <= step.t && step.t < step.s && step.s <= 1;
      if (step.end <= start || step.end > program_.instructions.size() || !has_times || !joins) {
        throw BundleError(where + ": instructions or times do not follow the step before");
      }
      for (; start < step.end; ++start) {
        check_time(program_.instructions[start], step, where);
        is_known[written_by(program_.instructions[start])] = true;
      }
      check_passed_on(step, is_known, where);
    }
  }

  static void check_time(const Instruction& instruction, const Step& step, const std::string& where) {
    const auto* evaluate = std::get_if<Evaluate>(&instruction);
    if (evaluate != nullptr && !(step.t <= evaluate->time && evaluate->time <= step.s)) {
      throw BundleError(
          message(where, ": evaluates at ", evaluate->time, ", outside ", step.t, " to ", step.s));
    }
  }

  void check_passed_on(const Step& step, const std::vector<bool>& is_known, const std::string& where) const {
    expect(step.state, RegisterType::state, where);
    if (type(step.velocity, where) == RegisterType::state) {
      throw BundleError(where + ": passes on a state as its velocity");
    }
    if (!is_known[step.state] || !is_known[step.velocity]) {
      throw BundleError(where + ": passes on a register that is not written yet");
    }
  }

  RegisterType type(std::size_t index, const std::string& where) const {
    if (index >= program_.registers.size()) throw BundleError(message(where, ": no register ", index));
    return program_.registers[index];
  }

  void expect(std::size_t index, RegisterType expected, const std::string& where) const {
    const RegisterType found = type(index, where);
    if (found == expected) return;
    throw BundleError(message(where, ": register ", index, " is a ", to_string(found), ", expected a ",
                              to_string(expected)));
  }

  void read(std::size_t index, const std::string& where) const {
    type(index, where);
    if (!is_written_[index]) {
      throw BundleError(message(where, ": reads register ", index, " before it is written"));
    }
  }

  void write(std::size_t index, const std::string& where) {
    if (is_written_[index]) {
      throw BundleError(message(where, ": writes register ", index, " a second time"));
    }
    is_written_[index] = true;
  }

  const ProgramParts& program_;
  std::vector<bool> is_written_;
};

}  // namespace

const char* to_string(Network network) { return network == Network::predictor ? "predictor" : "refiner"; }

const char* to_string(Variant variant) { return variant == Variant::guided ? "guided" : "unguided"; }

const char* to_string(RegisterType type) {
  switch (type) {
    case RegisterType::guided_velocity:
      return "velocity:guided";
    case RegisterType::unguided_velocity:
      return "velocity:unguided";
    default:
      return "state";
  }
}

RegisterType velocity_of(Variant variant) {
  return variant == Variant::guided ? RegisterType::guided_velocity : RegisterType::unguided_velocity;
}

std::vector<std::size_t> reads(const Instruction& instruction) {
  std::vector<std::size_t> found;
  if (const auto* evaluate = std::get_if<Evaluate>(&instruction)) {
    found.push_back(evaluate->state);
    if (evaluate->velocity) found.push_back(*evaluate->velocity);
  } else {
    for (const Term& term : std::get<Combine>(instruction).terms) found.push_back(term.source);
  }
  return found;
}

std::size_t written_by(const Instruction& instruction) {
  return std::visit([](const auto& item) { return item.out; }, instruction);
}

Program::Program(ProgramParts parts) : parts_(std::move(parts)) { Validator(parts_).check(); }

std::vector<Evaluate> Program::evaluations() const {
  std::vector<Evaluate> found;
  for (const Instruction& instruction : parts_.instructions) {
    if (const auto* evaluate = std::get_if<Evaluate>(&instruction)) found.push_back(*evaluate);
  }
  return found;
}

}  // namespace flowturbo
