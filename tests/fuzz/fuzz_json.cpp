// Any text: each reader of text returns a result or throws headaware::Error, and nothing else happens. What is read can
// be written, and reads the same again. As to what is JSON, nlohmann's reader is asked for a second opinion.
//
// The text up to the first NUL, if there is one, is the table of gates; the rest their settings.

#include <headaware/classify/builders.hpp>
#include <headaware/classify/classifier.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/io/duo_gates.hpp>
#include <headaware/io/json.hpp>
#include <headaware/io/model_config.hpp>
#include <headaware/io/model_shape.hpp>
#include <headaware/plan/summary.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>
#include <string_view>

namespace ha = headaware;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

void compare_with_nlohmann(std::string_view text) {
  // Malformed UTF-8 is passed on here, and NUL ends a text there.
  bool const comparable = std::all_of(text.begin(), text.end(), [](char c) { return static_cast<signed char>(c) > 0; });
  if (!comparable) return;
  bool const accepted = nlohmann::json::accept(text);
  try {
    ha::JsonTree const tree(text, "text");
    require(accepted);
  } catch (ha::FormatError const& error) {
    std::string const& what = error.detail().what;
    require(!accepted || what == "duplicate key" || what == "nesting too deep" || what == "number out of range");
  }
}

void attempt(void (*read)(std::string_view), std::string_view text) {
  try {
    read(text);
  } catch (ha::Error const& error) {
    require(!error.detail().what.empty() && !error.detail().expected.empty() && !error.detail().got.empty());
    require(!error.detail().where.empty());
  }
}

void read_statistics(std::string_view text) {
  auto const model = ha::parse_statistics(text, "text");
  auto const again = ha::format_statistics(model);
  require(ha::parse_statistics(again, "again") == model);
  auto const heads = ha::classify(model);
  require(ha::parse_classifications(ha::format_classifications(heads), "again") == heads);
}

void read_classifications(std::string_view text) {
  auto const heads = ha::parse_classifications(text, "text");
  require(ha::parse_classifications(ha::format_refined_classifications(heads), "again") == heads);
  ha::ModelConfig model;
  model.num_hidden_layers = heads.back().layer_idx + 1;
  model.num_attention_heads = model.num_key_value_heads = heads.back().head_idx + 1;
  (void)ha::table_from_classifications(heads, model);
}

void read_retention(std::string_view text) {
  auto const retention = ha::parse_retention_statistics(text, "text");
  require(ha::parse_retention_statistics(ha::format_retention_statistics(retention), "again") == retention);
}

void read_sums(std::string_view text) {
  auto const saved = ha::parse_attention_sums(text, "text");
  auto const again =
      ha::parse_attention_sums(ha::format_attention_sums(saved.observer, saved.position, saved.source), "again");
  require(again.observer.sums() == saved.observer.sums() && again.position == saved.position);
  ha::JsonWriter source;
  source.value(saved.source);
  require(again.source == ha::JsonTree(source.text(), "source").root().string());
  auto const second = nlohmann::json(saved.source).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  require(source.text() == second);
}

void read_plan(std::string_view text) {
  auto const plan = ha::parse_plan(text, "text");
  require(plan.left() >= 0);
  require(ha::parse_plan(ha::format_plan(plan), "again") == plan);
  require(ha::parse_policy_table(text, "text", plan.shape()) == plan.table);
  auto const formats = ha::parse_format_table(text, "text", plan.shape());
  require(formats == (plan.by_bytes() ? plan.formats : ha::FormatTable(plan.shape())));
  require(plan.planned_bytes() <= plan.budget_bytes());
  (void)ha::plan_summary(plan);
  auto const heads = ha::classifications_from_table(plan.table, plan.shape());  // refuses windows of no tokens
  require(ha::parse_policy_table(ha::format_classifications(heads, plan.shape()), "again", plan.shape()) == plan.table);
}

void read_policies(std::string_view text) { (void)ha::parse_policy_table(text, "text", ha::ModelConfig{1, 1, 1, 1}); }

void read_sensitivities(std::string_view text) {
  auto const saved = ha::parse_sensitivities(text, "text");
  require(ha::parse_sensitivities(ha::format_sensitivities(saved), "again") == saved);
}

void read_config(std::string_view text) { ha::parse_model_config(text, "text").validate(); }

void read_shape(std::string_view text) {
  auto const shape = ha::parse_model_shape(text, "text");
  require(shape.num_layers() > 0 && shape.bytes(2, 2) <= 2 * shape.token_bytes(2));
  bool plain = true;
  for (ha::LayerShape const& layer : shape.layers()) {
    require(layer.kind == ha::LayerKind::none || (layer.head_dim > 0 && layer.value_dim > 0));
    plain = plain && layer.kind == ha::LayerKind::attention;
  }
  // Layers that are alike are a ModelConfig, and the same one.
  if (shape.uniform() && plain) require(ha::ModelShape(ha::parse_model_config(text, "text")) == shape);
}

void read_gates(std::string_view text) {
  std::size_t const split = std::min(text.find('\0'), text.size());
  auto const settings = text.substr(std::min(split + 1, text.size()));
  auto const gates = ha::parse_duo_gates(text.substr(0, split), settings, "table", "settings");
  (void)ha::table_from_duo_gates(gates, 0.5);
  (void)ha::table_from_duo_gates(gates, ha::FullHeadShare{0.5});
}

/// A reader, and what the texts hold that it reads to their end.
struct Reader {
  void (*read)(std::string_view);
  std::string_view mark;
};

constexpr Reader readers[] = {{read_statistics, "head_statistics"},
                              {read_classifications, "head_type"},
                              {read_retention, "headaware.retention"},
                              {read_sums, "headaware.attention_sums"},
                              {read_plan, "headaware.plan"},
                              {read_policies, "head_type"},
                              {read_sensitivities, "headaware.sensitivities"},
                              {read_config, "num_hidden_layers"},
                              {read_shape, "layer"},
                              {read_gates, {"\0", 1}}};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  std::string_view const text(reinterpret_cast<char const*>(data), size);
  compare_with_nlohmann(text);
  // Each reader parses the whole text: those that it is not for see it by turns.
  std::size_t const turn = size % std::size(readers);
  for (std::size_t i = 0; i < std::size(readers); ++i) {
    if (i == turn || text.find(readers[i].mark) != std::string_view::npos) attempt(readers[i].read, text);
  }
  return 0;
}

// Every allocation's stack, and memory that is not used again for long, take a third of the time; a failure that is run
// again with ASAN_OPTIONS shows both.
extern "C" char const* __asan_default_options() { return "malloc_context_size=2:quarantine_size_mb=8"; }
