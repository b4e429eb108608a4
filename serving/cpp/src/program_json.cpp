#include <utility>

#include "flowturbo/error.hpp"
#include "json_fields.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

constexpr std::int64_t program_version = 1;

template <typename Choice>
Choice read_choice(const JsonField& field, std::initializer_list<Choice> choices) {
  const std::string found = field.text();
  for (const Choice choice : choices) {
    if (found == to_string(choice)) return choice;
  }
  throw BundleError(message(field.where(), ": ", in_quotes(found), " is not known to this reader"));
}

RegisterType read_register(const JsonField& field) {
  return read_choice(field,
                     {RegisterType::state, RegisterType::guided_velocity, RegisterType::unguided_velocity});
}

Evaluate read_evaluate(const JsonField& field) {
  const JsonField velocity = field["velocity"];
  Evaluate evaluate;
  evaluate.network = read_choice(field["network"], {Network::predictor, Network::refiner});
  evaluate.variant = read_choice(field["variant"], {Variant::guided, Variant::unguided});
  evaluate.state = field["state"].index();
  if (!velocity.is_null()) evaluate.velocity = velocity.index();
  evaluate.time = field["time"].number();
  evaluate.out = field["out"].index();
  return evaluate;
}

Term read_term(const JsonField& field) {
  const std::vector<JsonField> pair = field.items();
  if (pair.size() != 2) throw BundleError(field.where() + ": expected a coefficient and a register");
  return {pair[0].number(), pair[1].index()};
}

Instruction read_instruction(const JsonField& field) {
  const std::string operation = field["op"].text();
  if (operation == "evaluate") return read_evaluate(field);
  if (operation == "combine") return Combine{field["out"].index(), field["terms"].list(read_term)};
  throw BundleError(message(field.where(), ": unknown instruction ", in_quotes(operation),
                            "; this reader knows evaluate and combine"));
}

Step read_step(const JsonField& field) {
  return {field["kind"].text(), field["t"].number(),    field["s"].number(),
          field["end"].index(), field["state"].index(), field["velocity"].index()};
}

}  // namespace

Program read_program(const JsonField& field) {
  const std::int64_t version = field["version"].integer();
  if (version != program_version) {
    throw BundleError(message(field.where(), ": program version ", version, ", this reader knows ",
                              program_version, "; upgrade flowturbo_trt or rebuild the bundle"));
  }
  ProgramParts parts;
  parts.registers = field["registers"].list(read_register);
  for (const auto& [name, index] : field["inputs"].members()) parts.inputs.emplace(name, index.index());
  parts.instructions = field["instructions"].list(read_instruction);
  parts.steps = field["steps"].list(read_step);
  parts.output = field["output"].index();
  try {
    return Program(std::move(parts));
  } catch (const BundleError& error) {
    throw BundleError(field.where() + ": " + error.what());
  }
}

}  // namespace flowturbo
