#include "tools/report/gallery.hpp"
#include "tools/report/style.hpp"

#include <headaware/classify/summary.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace report {

namespace ha = headaware;

namespace {

struct Panel {
  std::string_view label;
  std::string_view column;
  double most;                 ///< the axis runs from 0 to here
  double bin_width;            ///< divides `most` and the usual limits, so that bins end at them
  std::vector<double> limits;  ///< the classifier's, in the axis' unit
  double (*value)(ha::HeadStatistics const&);
};

/// One block a panel, separated by two empty lines as gnuplot's `index` asks for.
std::string histogram_table(ReportInput const& input, std::vector<Panel> const& panels) {
  std::string text;
  for (auto const& panel : panels) {
    auto const num_bins = static_cast<std::size_t>(std::lround(panel.most / panel.bin_width));
    std::vector<std::array<std::int64_t, ha::num_head_types>> bins(num_bins);
    for (std::size_t i = 0; i < input.classifications.size(); ++i) {
      double const place = panel.value(input.statistics.heads[i]) / panel.bin_width;
      auto const bin = static_cast<std::size_t>(std::clamp(place, 0.0, static_cast<double>(num_bins - 1)));
      ++bins[bin][static_cast<std::size_t>(input.classifications[i].head_type)];
    }
    if (!text.empty()) text += "\n\n";
    text += "# " + std::string(panel.column) + "_from\tto";
    for (auto const name : ha::head_type_names) text += "\t" + std::string(name);
    text += "\n";
    for (std::size_t bin = 0; bin < num_bins; ++bin) {
      text += number("%.6g", static_cast<double>(bin) * panel.bin_width) + "\t" +
              number("%.6g", static_cast<double>(bin + 1) * panel.bin_width);
      for (auto const heads : bins[bin]) text += "\t" + std::to_string(heads);
      text += "\n";
    }
  }
  return text;
}

std::string histograms(ha::ClassificationSummary const& summary, std::vector<Panel> const& panels) {
  constexpr int width = 1120;
  constexpr int height = 420;
  std::vector<LegendEntry> entries;
  for (std::size_t type = 0; type < ha::num_head_types; ++type) {
    if (summary.type_counts[type] > 0)
      entries.push_back({type_colors[type], readable(static_cast<ha::HeadType>(type))});
  }
  std::string body =
      R"gp(set multiplot layout 1,3 margins 0.06,0.985,0.18,0.80 spacing 0.055 title "How the heads are spread" textcolor rgb "@INK@" offset 0,-0.3
set ytics out
set xtics out
set yrange [0:*]
set offsets 0, 0, graph 0.06, 0
unset key
)gp" + legend(entries, {.width = width,
                        .height = height,
                        .left = 68,
                        .bottom = 350,
                        .columns = 7,
                        .column_width = 148,
                        .row_height = 0});
  for (std::size_t p = 0; p < panels.size(); ++p) {
    auto const& panel = panels[p];
    body +=
        fill("set ylabel \"@LABEL@\" offset 0.3,0\nset xlabel \"@X@\"\nset xrange [0:@MOST@]\n",
             {{"LABEL", p == 0 ? "heads" : ""}, {"X", std::string(panel.label)}, {"MOST", number("%g", panel.most)}});
    for (double const limit : panel.limits) {
      body += fill(
          "set arrow from first @X@, graph 0 to first @X@, graph 1 nohead dashtype 2 linecolor rgb \"@INK@\" front\n",
          {{"X", number("%g", limit)}});
    }
    std::string plots;
    for (std::size_t type = 0; type < ha::num_head_types; ++type) {
      if (summary.type_counts[type] == 0) continue;
      // Columns 3 ... hold the types; a bar stands on those before it.
      plots += fill(
          R"gp(@AND@"histograms.tsv" index @P@ using (($1+$2)/2):(0):1:2:(sum [c=3:@BELOW@] column(c)):(sum [c=3:@SELF@] column(c)) with boxxyerror fillcolor rgb "@COLOR@")gp",
          {{"AND", plots.empty() ? "plot " : ", \\\n  "},
           {"P", std::to_string(p)},
           {"BELOW", std::to_string(type + 2)},
           {"SELF", std::to_string(type + 3)},
           {"COLOR", std::string(type_colors[type])}});
    }
    // The legend, too, is drawn once.
    body += plots + "\nunset arrow\nunset label\nunset object\n";
  }
  return script("histograms", width, height, fill(body + "unset multiplot", {{"INK", std::string(ink)}}));
}

std::string scatter(ReportInput const& input, ha::ClassificationSummary const& summary) {
  std::string plots;
  for (std::size_t type = 0; type < ha::num_head_types; ++type) {
    if (summary.type_counts[type] == 0) continue;
    plots += fill(
        R"gp(@AND@"heads.tsv" skip 1 using ($6 == @TYPE@ ? $4 : NaN):5 with points pointtype 7 pointsize 0.45 linecolor rgb "@COLOR@" title "@NAME@")gp",
        {{"AND", plots.empty() ? "plot " : ", \\\n  "},
         {"TYPE", std::to_string(type)},
         {"COLOR", std::string(type_colors[type])},
         {"NAME", readable(static_cast<ha::HeadType>(type))}});
  }
  auto const& info = input.statistics.model_info;
  return script("sink_vs_local", 760, 560,
                fill(R"gp(set title "Sinks against neighbourhood"
set xlabel "attention on the first @SINK@ tokens (%)"
set ylabel "attention on the last @LOCAL@ tokens (%)"
set xrange [0:100]
set yrange [0:100]
set xtics out
set ytics out
set grid linecolor rgb "#C8C8C8" linewidth 0.5
set key outside right top reverse Left samplen 0.5 spacing 1.3
set arrow from first @HIGHSINK@, graph 0 to first @HIGHSINK@, graph 1 nohead dashtype 2 linecolor rgb "@INK@"
set arrow from graph 0, first @HIGHLOCAL@ to graph 1, first @HIGHLOCAL@ nohead dashtype 2 linecolor rgb "@INK@"
)gp" + plots,
                     {{"SINK", std::to_string(info.sink_size)},
                      {"LOCAL", std::to_string(info.local_window + 1)},
                      {"HIGHSINK", number("%g", 100 * input.thresholds.high_sink)},
                      {"HIGHLOCAL", number("%g", 100 * input.thresholds.high_local)},
                      {"INK", std::string(ink)}}));
}

}  // namespace

void add_distributions(ReportInput const& input, Gallery& gallery) {
  auto const& t = input.thresholds;
  double entropy = t.high_entropy;
  for (auto const& s : input.statistics.heads) entropy = std::max(entropy, s.mean_entropy);
  std::vector<Panel> const panels{
      {.label = "mean entropy (nats)",
       .column = "entropy",
       .most = std::max(0.5, std::ceil(2 * entropy) / 2),
       .bin_width = 0.125,
       .limits = {t.low_entropy, t.high_entropy},
       .value = [](ha::HeadStatistics const& s) { return s.mean_entropy; }},
      {.label = "attention on sinks (%)",
       .column = "sink_percent",
       .most = 100,
       .bin_width = 2.5,
       .limits = {100 * t.high_sink},
       .value = [](ha::HeadStatistics const& s) { return 100 * s.sink_ratio; }},
      {.label = "local attention (%)",
       .column = "local_percent",
       .most = 100,
       .bin_width = 2.5,
       .limits = {100 * t.high_local},
       .value = [](ha::HeadStatistics const& s) { return 100 * s.position_preference.local; }},
  };
  auto const summary = ha::summarize(input.classifications);
  gallery.data.push_back({"histograms.tsv", histogram_table(input, panels)});
  gallery.pictures.push_back({PictureKind::wide, "histograms", "How the heads are spread",
                              "Each bar counts the heads whose value falls into its bin, stacked by type; dashed lines "
                              "are the classifier's thresholds.",
                              histograms(summary, panels)});
  gallery.pictures.push_back({PictureKind::wide, "sink_vs_local", "Sinks against neighbourhood",
                              "One dot per head: to the right it looks at the sinks, to the top at its neighbours, and "
                              "near the origin at what lies between; dashed lines are the classifier's thresholds.",
                              scatter(input, summary)});
}

}  // namespace report
