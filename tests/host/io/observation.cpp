// Retention statistics and an observer's sums, to a file and back.

#include "support/attention_problem.hpp"
#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/attention_sums.hpp>

#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

ha::AttentionObserver observed(bool with_values) {
  Problem const problem(4, 2, 90, 8, 3);
  ha::ObserverParameters parameters;
  parameters.num_distances = 5;
  parameters.chunk_size = 50;
  parameters.query_stride = 3;
  parameters.retention = ha::RetentionGrid{.sinks = {0, 4}, .windows = {8, 16, 40}};
  ha::AttentionObserver observer({2, 4, 2, 8}, parameters);
  observer.observe(0, problem.layer(with_values), {.scale = 0.3F});
  observer.observe(1, problem.layer(with_values), {.scale = 0.5F});
  return observer;
}

}  // namespace

TEST_CASE("retention statistics survive a file", "[io]") {
  TemporaryFolder const folder;
  for (bool const with_values : {false, true}) {
    auto const retention = observed(with_values).retention_statistics();
    REQUIRE(retention.info.with_values == with_values);
    ha::save_retention_statistics(folder / "retention_statistics.json", retention);
    REQUIRE(ha::load_retention_statistics(folder / "retention_statistics.json") == retention);
  }
  auto metric = observed(true).retention_statistics();
  metric.info.with_output_metric = true;
  for (auto& head : metric.heads) {
    head.metric_rows = head.rows;
    head.output_metric_squared = 2.5;
    head.metric_error_squared.assign(6, 0.125);
    head.rounding.metric_rows = head.rounding.rows;
  }
  ha::save_retention_statistics(folder / "retention_statistics.json", metric);
  REQUIRE(ha::load_retention_statistics(folder / "retention_statistics.json") == metric);
}

TEST_CASE("errors of formats survive a file, and files without them are read", "[io]") {
  auto statistics = observed(true).retention_statistics();
  REQUIRE(statistics.info.formats == std::vector<std::string>{"fp8_e4m3", "int8", "packed6", "packed5", "packed4"});
  REQUIRE(statistics.heads[0].rounding.key_error_squared[4] > 0);
  std::string const text = ha::format_retention_statistics(statistics);
  REQUIRE(ha::parse_retention_statistics(text, "file") == statistics);
  REQUIRE(text.find("key_metric_error_squared") == std::string::npos);
  // After W_O, too.
  auto metric = statistics;
  metric.info.with_output_metric = true;
  for (auto& head : metric.heads) {
    head.metric_rows = head.rows;
    head.rounding.metric_rows = head.rounding.rows;
    head.rounding.key_metric_error_squared.assign(5, 0.25);
    head.rounding.value_metric_error_squared.assign(5, 0.5);
  }
  REQUIRE(ha::parse_retention_statistics(ha::format_retention_statistics(metric), "file") == metric);
  // Without formats a file is what it was before there were any.
  auto none = statistics;
  none.info.formats.clear();
  for (auto& head : none.heads) head.rounding = {};
  std::string const old = ha::format_retention_statistics(none);
  REQUIRE(old.find("formats") == std::string::npos);
  REQUIRE(old.find("rounding") == std::string::npos);
  REQUIRE(ha::parse_retention_statistics(old, "file") == none);

  auto const refused = [](std::string const& broken, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::parse_retention_statistics(broken, "file"); }, parts);
  };
  refused(replaced(text, "\"packed5\",\"packed4\"]", "\"packed5\"]"),
          {"number of sums", "4", "5", "/heads/0/rounding/key_error_squared"});
  refused(replaced(text, "\"packed5\",\"packed4\"]", "\"packed5\",\"int8\"]"),
          {"name of a format", "each once", "int8", "/formats/4"});
  refused(replaced(text, "\"packed5\",\"packed4\"]", "\"\",\"packed4\"]"), {"name of a format", "", "", "/formats/3"});
  refused(replaced(text, "\"packed5\",\"packed4\"]", "4,\"packed4\"]"), {"", "a string", "", "/formats/3"});
  refused(replaced(old, "\"grid\":", "\"formats\":[\"int8\"],\"grid\":"),
          {"missing field", "an object", "nothing", "/heads/0/rounding"});

  auto const not_written = [&](auto const& spoil, ha::ErrorDetail const& parts) {
    auto broken = statistics;
    spoil(broken);
    check_error<ha::ArgumentError>([&] { (void)ha::format_retention_statistics(broken); }, parts);
  };
  not_written([](auto& s) { s.heads[2].rounding.key_error_squared[1] = -1; },
              {"rounding.key_error_squared", ">= 0", "others", "format_retention_statistics"});
  not_written([](auto& s) { s.heads[2].rounding.value_error_squared[0] = std::numeric_limits<double>::quiet_NaN(); },
              {"rounding.value_error_squared", "finite", "others", ""});
  not_written([](auto& s) { s.heads[7].rounding.rows = 0; }, {"rounding.rows", "1", "0", ""});
  not_written([](auto& s) { s.info.formats.pop_back(); }, {"rounding.key_error_squared", "4 sums", "5", ""});
  not_written([](auto& s) { s.info.formats.clear(); }, {"formats of a head", "0", "5", ""});
  not_written([](auto& s) { s.info.formats[1] = s.info.formats[0]; }, {"formats", "each once", "at 1", ""});
}

TEST_CASE("an observer goes on from a file", "[io]") {
  TemporaryFolder const folder;
  auto const before = observed(true);
  ha::save_attention_sums(folder / "attention_sums.json", before, 7, "a text");
  auto const saved = ha::load_attention_sums(folder / "attention_sums.json");
  REQUIRE(saved.position == 7);
  REQUIRE(saved.source == "a text");
  // What is no UTF-8 in a path or a name costs no results.
  ha::save_attention_sums(folder / "attention_sums.json", before, 7, "m\xe4rchen \xc3\xa4");
  CHECK(ha::load_attention_sums(folder / "attention_sums.json").source == "m\xef\xbf\xbdrchen \xc3\xa4");
  auto const as_written = [](std::string_view text) {
    ha::JsonWriter json;
    json.value(text);
    return std::string(ha::JsonTree(json.text(), "written").root().string());
  };
  CHECK(as_written("m\xe4rchen \xc3\xa4") == "m\xef\xbf\xbdrchen \xc3\xa4");
  CHECK(as_written("a text") == "a text");
  REQUIRE(saved.observer.model() == before.model());
  REQUIRE(saved.observer.parameters() == before.parameters());
  REQUIRE(saved.observer.sums() == before.sums());
  // An older file knows no formats.
  std::string const text = ha::format_attention_sums(before);
  REQUIRE(ha::parse_attention_sums(text, "file").observer.sums() == before.sums());
  ha::ObserverParameters parameters = before.parameters();
  parameters.formats.clear();
  ha::AttentionObserver const without({1, 1, 1, 0}, parameters);
  std::string const old = ha::format_attention_sums(without);
  REQUIRE(old.find("formats") == std::string::npos);
  REQUIRE(ha::parse_attention_sums(old, "file").observer.parameters() == parameters);
  parameters.rounding_stride = 3;
  ha::AttentionObserver const other({1, 1, 1, 0}, parameters);
  REQUIRE(ha::parse_attention_sums(ha::format_attention_sums(other), "file").observer.parameters() == parameters);
  ha::AttentionObserver const plain({1, 1, 1, 0});
  auto const again = ha::parse_attention_sums(ha::format_attention_sums(plain), "plain");
  REQUIRE_FALSE(again.observer.parameters().retention.has_value());
}

TEST_CASE("retention statistics that are broken are named", "[io]") {
  std::string const text = ha::format_retention_statistics(observed(true).retention_statistics());
  auto const refused = [](std::string const& broken, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::parse_retention_statistics(broken, "file"); }, parts);
  };
  for (std::size_t const cut : {std::size_t{0}, std::size_t{1}, text.size() / 2, text.size() - 1}) {
    REQUIRE_THROWS_AS(ha::parse_retention_statistics(text.substr(0, cut), "file"), ha::FormatError);
  }
  refused(replaced(text, "headaware.retention_statistics", "something"),
          {"format", "headaware.retention_statistics", "something", "/format"});
  refused(replaced(text, "\"version\":1", "\"version\":2"), {"version", "1", "2", "/version"});
  refused(replaced(text, "\"windows\":[8,16,40]", "\"windows\":[8,8,40]"), {"", "9", "8", "/grid/windows/1"});
  refused(replaced(text, "\"windows\":[8,16,40]", "\"windows\":[]"),
          {"empty", "at least one", "none", "/grid/windows"});
  refused(replaced(text, "\"windows\":[8,16,40]", "\"windows\":[8,16]"), {"number of sums", "4", "6", "/heads/0/mass"});
  refused(replaced(text, "\"num_kv_heads\":2", "\"num_kv_heads\":3"),
          {"num_kv_heads", "divisor of 4", "3", "num_kv_heads"});
  refused(replaced(text, "\"num_layers\":2", "\"num_layers\":3"), {"", "", "", "file"});
  refused(replaced(text, "\"query_stride\":3", "\"query_stride\":0"), {"", "1", "0", "/query_stride"});
  refused(replaced(text, "\"with_output_metric\":false", "\"with_output_metric\":true"),
          {"", "a number", "", "/heads/0"});

  auto negative = observed(true).retention_statistics();
  negative.heads[3].mass[2] = -1;
  check_error<ha::ArgumentError>([&] { (void)ha::format_retention_statistics(negative); },
                                 {"mass", ">= 0", "others", "format_retention_statistics"});
  negative.heads[3].mass[2] = std::numeric_limits<double>::quiet_NaN();
  check_error<ha::ArgumentError>([&] { (void)ha::format_retention_statistics(negative); },
                                 {"mass", "finite", "others", "format_retention_statistics"});
}

TEST_CASE("sums of an observer that are broken are named", "[io]") {
  std::string const text = ha::format_attention_sums(observed(true), 3, "x");
  auto const refused = [](std::string const& broken, ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::parse_attention_sums(broken, "file"); }, parts);
  };
  for (std::size_t const cut : {std::size_t{0}, text.size() / 2, text.size() - 1}) {
    REQUIRE_THROWS_AS(ha::parse_attention_sums(text.substr(0, cut), "file"), ha::FormatError);
  }
  refused(replaced(text, "\"position\":3", "\"position\":-3"), {"out of range", "[0, ", "-3", "/position"});
  refused(replaced(text, "\"num_distances\":5", "\"num_distances\":6"), {"number of sums", "", "", "/sums/0"});
  refused(replaced(text, "\"num_layers\":2", "\"num_layers\":1"), {"number of heads", "4", "8", "/sums"});
  refused(replaced(text, "\"rounding_stride\":16", "\"rounding_stride\":0"), {"", "1", "0", "/rounding_stride"});
  refused(replaced(text, "\"packed6\"", "\"packed7\""), {"unknown format", "packed6", "packed7", "/formats/2"});
  refused(replaced(text, "\"packed6\"", "\"int8\""), {"name of a format", "each once", "int8", "/formats/2"});
  refused(replaced(text, ",\"packed4\"]", "]"), {"number of sums", "", "", "/sums/0"});
  refused(replaced(text, "\"recent_ratio\":0.1", "\"recent_ratio\":1.1"), {"", "[0, 1]", "1.1", "recent_ratio"});
}
