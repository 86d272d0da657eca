#include "support/catch.hpp"
#include "support/files.hpp"

#include <headaware/classify/summary.hpp>
#include <headaware/io/head_classifications.hpp>

#include <string>
#include <vector>

namespace ha = headaware;

TEST_CASE("a summary counts types, strategies and flags", "[classify]") {
  std::vector<ha::HeadClassification> heads(4);
  heads[0].head_type = ha::HeadType::dead;
  heads[0].can_prune = true;
  heads[0].compression_strategy = ha::CompressionStrategy::prune;
  heads[1].head_type = ha::HeadType::sink_mixed;
  heads[1].can_limit_window = true;
  heads[1].keep_sinks = true;
  heads[1].compression_strategy = ha::CompressionStrategy::sink_window;
  heads[2] = heads[1];
  heads[3].use_full_cache = true;

  auto const s = ha::summarize(heads);
  CHECK(s.total_heads == 4);
  CHECK(s.count(ha::HeadType::dead) == 1);
  CHECK(s.count(ha::HeadType::sink_mixed) == 2);
  CHECK(s.count(ha::HeadType::mixed) == 1);
  CHECK(s.count(ha::HeadType::gathering) == 0);
  CHECK(s.count(ha::CompressionStrategy::sink_window) == 2);
  CHECK(s.count(ha::CompressionStrategy::none) == 1);
  CHECK(s.prunable_heads == 1);
  CHECK(s.limitable_heads == 2);
  CHECK(s.compressible_heads == 3);
  CHECK(s.sink_heads == 2);
  CHECK(s.percentage(s.sink_heads) == 50);
}

TEST_CASE("a summary of nothing has no percentages to divide by", "[classify]") {
  auto const s = ha::summarize({});
  CHECK(s == ha::ClassificationSummary{});
  CHECK(s.percentage(0) == 0);
  CHECK(ha::format_summary(s).find("Total heads: 0\n") != std::string::npos);
}

TEST_CASE("the legacy type has a line where it occurs", "[classify]") {
  std::vector<ha::HeadClassification> heads(1);
  CHECK(ha::format_summary(ha::summarize(heads)).find("\n  positional") == std::string::npos);
  heads[0].head_type = ha::HeadType::positional;
  CHECK(ha::format_summary(ha::summarize(heads)).find("\n  positional          :    1 heads (100.0%)\n") !=
        std::string::npos);
}

TEST_CASE("the summary reads as the reference's report does", "[classify][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const folder = headaware_test::shared_data() / "pythia-2.8b";
  auto const text =
      ha::format_summary(ha::summarize(ha::load_classifications(folder / "refined_classifications.json")));
  auto const report = ha::read_text_file(folder / "validation_report.txt");
  CHECK(report.find(text) != std::string::npos);
}
