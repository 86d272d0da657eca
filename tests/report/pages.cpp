// Writes reports of made-up models that have everything a report can show: every type, heads that are pruned,
// retention with values and without, a title that must be escaped; and of the smallest model.

#include "tools/report/report.hpp"

#include <headaware/classify/classifier.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>

namespace ha = headaware;

namespace {

ha::HeadStatistics head(std::int32_t layer, std::int32_t index) {
  double const x = (layer * 7 + index * 3) % 11 / 10.0;
  double const y = (layer * 5 + index * 2) % 7 / 6.0;
  ha::HeadStatistics s;
  s.layer_idx = layer;
  s.head_idx = index;
  s.mean_entropy = 4.5 * x;
  s.sink_ratio = s.position_preference.sink = 0.7 * y;
  s.position_preference.local = (1 - 0.7 * y) * (1 - x);
  s.uniformity_score = layer == 1 && index == 1 ? 0.05 : 1;
  for (int d = 0; d < 64; ++d) s.relative_position_dist.push_back((1 - 0.7 * y) * std::exp2(-d * (1.1 - x)) / 4);
  return s;
}

report::ReportInput input(std::int32_t layers, std::int32_t heads) {
  report::ReportInput result;
  result.title = "Made-up <model> & \"more\"";
  result.statistics.model_info.num_layers = layers;
  result.statistics.model_info.num_heads = heads;
  for (std::int32_t l = 0; l < layers; ++l) {
    for (std::int32_t h = 0; h < heads; ++h) result.statistics.heads.push_back(head(l, h));
  }
  result.classifications = ha::classify(result.statistics);
  result.classifications.back().head_type = ha::HeadType::positional;
  return result;
}

ha::RetentionStatistics retention(report::ReportInput const& input, bool with_values) {
  auto const& info = input.statistics.model_info;
  ha::RetentionStatistics result;
  result.info.num_layers = info.num_layers;
  result.info.num_heads = result.info.num_kv_heads = info.num_heads;
  result.info.with_values = with_values;
  if (with_values) result.info.formats = {"int8", "packed4"};
  auto const& grid = result.info.grid;
  for (auto const& s : input.statistics.heads) {
    ha::RetentionSums sums(grid, result.info.formats.size());
    // A head without a row has no value; nothing is lost at the largest window.
    sums.rows = s.layer_idx == 0 && s.head_idx == 0 ? 0 : 100;
    sums.output_squared = static_cast<double>(sums.rows);
    for (std::size_t sink = 0; sink < grid.sinks.size(); ++sink) {
      for (std::size_t w = 0; w + 1 < grid.windows.size(); ++w) {
        std::size_t const cell = grid.cell(sink, w);
        sums.mass[cell] = static_cast<double>(sums.rows) * std::exp2(-grid.windows[w] / 400.0) * 0.3;
        if (with_values) sums.error_squared[cell] = sums.mass[cell] * (0.2 + s.mean_entropy);
      }
    }
    if (with_values) {
      sums.rounding.rows = sums.rows;
      sums.rounding.key_error_squared = {1e-6 * s.mean_entropy, 1e-3 * s.mean_entropy};
      sums.rounding.value_error_squared = {0, 1e-4 * s.mean_entropy};
    }
    result.heads.push_back(sums);
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    std::filesystem::path const folder = argc > 1 ? argv[1] : ".";
    report::ReportInput everything = input(12, 8);
    everything.parameters = {{"text", "none <at> all"}};
    everything.retention = retention(everything, true);
    report::write_report(folder / "values", everything);
    everything.retention = retention(everything, false);
    report::write_report(folder / "mass", everything);
    report::write_report(folder / "smallest", input(1, 1));
  } catch (std::exception const& error) {
    std::fprintf(stderr, "report_pages: %s\n", error.what());
    return 1;
  }
}
