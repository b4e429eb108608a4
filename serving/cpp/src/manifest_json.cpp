#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "flowturbo/error.hpp"
#include "json_fields.hpp"
#include "manifest.hpp"
#include "text.hpp"

namespace flowturbo {
namespace {

constexpr const char* format = "flowturbo_trt bundle";
constexpr std::int64_t newest_version = 2;

std::string read_text(const JsonField& field) { return field.text(); }

std::int64_t read_integer(const JsonField& field) { return field.integer(); }

double read_number(const JsonField& field) { return field.number(); }

std::vector<std::string> read_texts(const JsonField& field) { return field.list(read_text); }

template <std::size_t count>
std::array<std::int64_t, count> read_sizes(const JsonField& field) {
  const std::vector<JsonField> items = field.items();
  if (items.size() != count) {
    throw BundleError(message(field.where(), " has ", items.size(), " items, expected ", count));
  }
  std::array<std::int64_t, count> sizes{};
  std::transform(items.begin(), items.end(), sizes.begin(), read_integer);
  return sizes;
}

void check_texts(const JsonField& field) {
  for (const auto& member : field.members()) member.second.text();
}

Tensor read_tensor(const JsonField& field) {
  const auto read_axis = [](const JsonField& axis) -> std::optional<std::int64_t> {
    if (!axis.is_text()) return axis.integer();
    return std::nullopt;
  };
  return {field["name"].text(), field["dtype"].text(), field["shape"].list(read_axis)};
}

std::vector<Tensor> read_tensors(const JsonField& field) { return field.list(read_tensor); }

/// What graphs and engines have in common.
Engine read_files(const JsonField& field) {
  Engine engine;
  engine.network = field["network"].text();
  if (const JsonField variant = field["variant"]; !variant.is_null()) engine.variant = variant.text();
  engine.file = field["file"].text();
  engine.data = read_texts(field["data"]);
  engine.inputs = read_tensors(field["inputs"]);
  engine.outputs = read_tensors(field["outputs"]);
  if (field.has("key")) check_texts(field["key"]);
  return engine;
}

Engine read_engine(const JsonField& field) {
  Engine engine = read_files(field);
  engine.backend = field["backend"].text();
  engine.precision = field["precision"].text();
  engine.batches = field["batches"].list(read_integer);
  engine.targets = read_texts(field["targets"]);
  field["builder"].text();
  return engine;
}

Condition read_condition(const JsonField& field) {
  if (const std::string dtype = field["dtype"].text(); dtype != "int64") {
    throw BundleError(message(field.where(), ".dtype is ", in_quotes(dtype), ", expected 'int64'"));
  }
  Condition condition{field["name"].text(), field["minimum"].integer(), field["maximum"].integer(), {}};
  if (field.has("null") && !field["null"].is_null()) condition.null = field["null"].integer();
  return condition;
}

Model read_model(const JsonField& field) {
  Model model;
  field["family"].text();
  model.latent = read_sizes<3>(field["latent"]);
  if (const JsonField image = field["image"]; !image.is_null()) model.image = read_sizes<2>(image);
  model.conditions = field["conditions"].list(read_condition);
  const JsonField guidance = field["guidance"];
  model.guidance = {guidance["channels"].integer(), guidance["halves"].integer(),
                    guidance["default"].number()};
  field["config"].members();
  if (const JsonField config = field["refiner_config"]; !config.is_null()) config.members();
  if (field.has("decoder_config") && !field["decoder_config"].is_null()) field["decoder_config"].members();
  return model;
}

bool is_letter_or_digit(char character) {
  return (character >= 'a' && character <= 'z') || (character >= 'A' && character <= 'Z') ||
         (character >= '0' && character <= '9');
}

bool is_table_name(const std::string& name) {
  const auto is_allowed = [](char character) {
    return is_letter_or_digit(character) || character == '.' || character == '_' || character == '-';
  };
  return !name.empty() && is_letter_or_digit(name.front()) &&
         std::all_of(name.begin(), name.end(), is_allowed);
}

void check_table(const JsonField& field) {
  const std::string name = field["name"].text();
  const std::vector<double> times = field["times"].list(read_number);
  const auto weights = field["weights"].list([](const JsonField& row) { return row.list(read_number); });
  const std::int64_t refined = field.has("refined") ? field["refined"].integer() : 0;
  bool holds = is_table_name(name) && !weights.empty() && times.size() == weights.size() + 1;
  for (std::size_t row = 0; row < weights.size(); ++row) holds = holds && weights[row].size() == row + 1;
  holds = holds && times.front() >= 0 && times.back() <= 1;
  holds = holds && std::adjacent_find(times.begin(), times.end(), std::greater_equal<>()) == times.end();
  holds = holds && 0 <= refined && refined < static_cast<std::int64_t>(weights.size());
  if (!holds) throw BundleError(field.where() + ": is no solver table (bundle/FORMAT.md)");
}

void check_tables(const JsonField& field) {
  std::set<std::string> names;
  for (const JsonField& table : field.items()) {
    check_table(table);
    if (!names.insert(table["name"].text()).second) {
      throw BundleError(table.where() + ": shares its name with another table");
    }
  }
}

FileRecord read_record(const JsonField& field) { return {field["bytes"].index(), field["sha256"].text()}; }

std::map<std::string, Program> read_programs(const JsonField& field) {
  std::map<std::string, Program> programs;
  for (const auto& [variant, program] : field.members()) programs.emplace(variant, read_program(program));
  return programs;
}

/// What a runtime has no use for is still to be of its type: a manifest that is wrong there was damaged.
void check_provenance(const JsonField& field) {
  for (const auto& source : field["sources"].members()) check_texts(source.second);
  field["options"].members();
  check_texts(field["environment"]);
  field["licence"].text();
  if (field.has("tables")) check_tables(field["tables"]);
}

void check_header(const Json& document) {
  const auto found = document.is_object() ? document.find("format") : document.end();
  if (!document.is_object() || found == document.end() || *found != format) {
    throw BundleError("manifest: not that of a flowturbo_trt bundle");
  }
  const std::int64_t version = JsonField(document, "manifest")["version"].integer();
  if (version < 1 || version > newest_version) {
    throw BundleError(message("manifest: format version ", version, ", this reader knows up to ",
                              newest_version, "; upgrade flowturbo_trt or rebuild the bundle"));
  }
}

}  // namespace

Manifest parse_manifest(std::string_view text) {
  const Json document = parse_json(text);
  check_header(document);
  const JsonField field(document, "manifest");
  Manifest manifest;
  manifest.model = read_model(field["model"]);
  manifest.batches = field["batches"].list(read_integer);
  manifest.default_schedule = field["default_schedule"].text();
  for (const auto& [schedule, programs] : field["programs"].members()) {
    manifest.programs.emplace(schedule, read_programs(programs));
  }
  manifest.engines = field["engines"].list(read_engine);
  for (const auto& [name, record] : field["files"].members()) {
    manifest.files.emplace(name, read_record(record));
  }
  check_provenance(field);
  validate(manifest, field["graphs"].list(read_files));
  return manifest;
}

}  // namespace flowturbo
