#include "tools/report/report.hpp"

#include "tools/report/gallery.hpp"
#include "tools/report/gnuplot.hpp"
#include "tools/report/page.hpp"

#include <headaware/error.hpp>
#include <headaware/head_grid.hpp>
#include <headaware/io/file.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <system_error>
#include <vector>

namespace report {

namespace ha = headaware;

namespace {

constexpr auto where = "write_report";

/// All pictures that a report may have, and the data that several of them share.
constexpr std::array picture_names{"types",         "entropy",   "sinks",     "local",    "windows", "histograms",
                                   "sink_vs_local", "distances", "retention", "rounding", "heads"};

/// Query heads of every layer.
class QueryHeads {
 public:
  explicit QueryHeads(ha::StatisticsInfo const& info) : all_{info.num_layers, info.num_heads} {
    if (info.layers.num_layers() == 0) return;
    first_.push_back(0);
    for (ha::LayerShape const& layer : info.layers.layers()) first_.push_back(first_.back() + layer.num_query_heads);
    all_.first_heads = first_.data();
    all_.num_heads = first_.back();
  }
  QueryHeads(QueryHeads const&) = delete;
  QueryHeads& operator=(QueryHeads const&) = delete;
  [[nodiscard]] ha::LayerHeads const& all() const { return all_; }

 private:
  std::vector<std::int32_t> first_;
  ha::LayerHeads all_;
};

void check_retention(ha::RetentionStatistics const& retention, ha::StatisticsInfo const& info,
                     ha::LayerHeads const& query_heads) {
  auto const& grid = retention.info.grid;
  grid.validate();
  auto const& r = retention.info;
  ha::require(r.num_layers == info.num_layers, "layers of the retention", info.num_layers, r.num_layers, where);
  ha::require(r.num_heads == info.num_heads, "heads of the retention", info.num_heads, r.num_heads, where);
  auto const heads = static_cast<std::size_t>(query_heads.total());
  ha::require(retention.heads.size() == heads, "heads of the retention", heads, retention.heads.size(), where);
  for (auto const& head : retention.heads) {
    ha::require(head.mass.size() == grid.size(), "cells of a head's retention", grid.size(), head.mass.size(), where);
    ha::require(head.error_squared.size() == grid.size(), "cells of a head's retention", grid.size(),
                head.error_squared.size(), where);
    ha::require(head.rounding.formats() == retention.info.formats.size(), "formats of a head's retention",
                retention.info.formats.size(), head.rounding.formats(), where);
  }
}

/// The same with statistics and classes by (layer, head). @throws ArgumentError if they are not of the same heads
ReportInput in_order(ReportInput input) {
  auto const& info = input.statistics.model_info;
  ha::require(info.num_layers > 0 && info.num_heads > 0, "heads", "at least one", "none", where);
  QueryHeads const heads(info);
  ha::require_grid(std::span<ha::HeadStatistics const>(input.statistics.heads), heads.all(), where);
  ha::require_grid(std::span<ha::HeadClassification const>(input.classifications), heads.all(), where);
  if (input.retention) check_retention(*input.retention, info, heads.all());
  auto const place = [&](auto const& record) { return ha::grid_index(record, heads.all()); };
  auto const before = [&](auto const& a, auto const& b) { return place(a) < place(b); };
  std::sort(input.statistics.heads.begin(), input.statistics.heads.end(), before);
  std::sort(input.classifications.begin(), input.classifications.end(), before);
  return input;
}

}  // namespace

void write_report(std::filesystem::path const& results_dir, ReportInput const& input) {
  ReportInput const ordered = in_order(input);
  Gallery gallery;
  add_heat_maps(ordered, gallery);
  add_distributions(ordered, gallery);
  add_curves(ordered, gallery);
  add_rounding(ordered, gallery);

  // Of an earlier report, not of these numbers: should drawing fail, nothing is better.
  std::filesystem::remove(results_dir / "report.html");
  auto const drawings = write_pictures(results_dir / "pictures", gallery, picture_names);
  ha::write_file(results_dir / "report.html", page(ordered, gallery.pictures, drawings));
  std::printf("wrote report.html and pictures/ (%zu pictures as SVG and PNG, their data and scripts) to %s\n",
              drawings.size(), results_dir.string().c_str());
}

bool remove_report(std::filesystem::path const& results_dir) {
  std::error_code error;
  bool const removed = std::filesystem::remove(results_dir / "report.html", error);
  for (char const* const name : picture_names) remove_picture(results_dir / "pictures", name);
  std::filesystem::remove(results_dir / "pictures", error);  // fails where other files are in it
  return removed;
}

}  // namespace report
