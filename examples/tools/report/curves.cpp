#include "tools/report/gallery.hpp"
#include "tools/report/style.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace report {

namespace ha = headaware;

namespace {

/// Heads of each type, as places in the lists.
std::array<std::vector<std::size_t>, ha::num_head_types> heads_by_type(ReportInput const& input) {
  std::array<std::vector<std::size_t>, ha::num_head_types> result;
  for (std::size_t i = 0; i < input.classifications.size(); ++i) {
    result[static_cast<std::size_t>(input.classifications[i].head_type)].push_back(i);
  }
  return result;
}

/// Linear between neighbours. @pre not empty
double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  double const place = share * static_cast<double>(values.size() - 1);
  auto const low = static_cast<std::size_t>(place);
  std::size_t const high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (place - static_cast<double>(low));
}

constexpr std::string_view curve_style = R"gp(set xtics out
set ytics out
set grid linecolor rgb "#C8C8C8" linewidth 0.5
set key outside right top reverse Left samplen 1.5 spacing 1.3
)gp";

// Columns of both tables: x, then for each type lower quartile, median, upper quartile; "-" where it has no heads.

template <class Value>
void append_quartiles(std::string& text, ReportInput const& input, Value const& value) {
  for (auto const& heads : heads_by_type(input)) {
    std::vector<double> values;
    for (std::size_t const head : heads) {
      double const v = value(head);
      if (std::isfinite(v)) values.push_back(v);
    }
    for (double const share : {0.25, 0.5, 0.75}) {
      text += "\t" + (values.empty() ? "-" : number("%.6g", quantile(values, share)));
    }
  }
  text += "\n";
}

std::string quartile_header(std::string_view x) {
  std::string text(x);
  for (auto const name : ha::head_type_names) {
    for (char const* const part : {"_25", "_50", "_75"}) text += "\t" + std::string(name) + part;
  }
  return text + "\n";
}

/// Bands between the quartiles first, so that no median lies under one.
std::string quartile_plots(ReportInput const& input, std::string_view file, std::string_view lines) {
  auto const by_type = heads_by_type(input);
  std::string plots;
  for (bool const band : {true, false}) {
    for (std::size_t type = 0; type < ha::num_head_types; ++type) {
      if (by_type[type].empty()) continue;
      auto const column = [&](std::size_t part) { return std::to_string(3 * type + 2 + part); };
      plots += fill(
          band
              ? R"gp(@AND@"@FILE@" skip 1 using 1:@LOW@:@HIGH@ with filledcurves fillcolor rgb "@COLOR@" fillstyle transparent solid 0.1 notitle)gp"
              : R"gp(@AND@"@FILE@" skip 1 using 1:@MEDIAN@ with @LINES@ linecolor rgb "@COLOR@" linewidth 2 title "@NAME@ (@HEADS@)")gp",
          {{"AND", plots.empty() ? "plot " : ", \\\n  "},
           {"FILE", std::string(file)},
           {"LINES", std::string(lines)},
           {"LOW", column(0)},
           {"MEDIAN", column(1)},
           {"HIGH", column(2)},
           {"COLOR", std::string(type_colors[type])},
           {"NAME", readable(static_cast<ha::HeadType>(type))},
           {"HEADS", std::to_string(by_type[type].size())}});
    }
  }
  return plots;
}

void add_distances(ReportInput const& input, Gallery& gallery) {
  auto const& heads = input.statistics.heads;
  std::size_t const distances = heads.empty() ? 0 : heads.front().relative_position_dist.size();
  if (distances < 2) return;
  std::string text = quartile_header("distance");
  for (std::size_t d = 0; d < distances; ++d) {
    text += std::to_string(d);
    append_quartiles(text, input, [&](std::size_t head) {
      double const p = 100 * heads[head].relative_position_dist[d];
      return p > 0 ? p : std::nan("");  // nothing on a logarithmic axis
    });
  }
  gallery.data.push_back({"distances.tsv", text});
  gallery.pictures.push_back(
      {PictureKind::wide, "distances", "Attention over distance",
       "How much of a query's attention falls on the token so many places before it: the line is the median over the "
       "heads of a type, the band holds the middle half of them.",
       script("distances", 900, 480,
              fill(R"gp(set title "Attention over distance"
set xlabel "distance to the query (tokens)"
set ylabel "attention on one token (%)"
set xrange [0:@LAST@]
# Heads on their neighbours give next to nothing to other tokens, which would squeeze all else.
set yrange [0.01:100]
set logscale y
)gp" + std::string(curve_style) +
                       quartile_plots(input, "distances.tsv", "lines"),
                   {{"LAST", std::to_string(distances - 1)}}))});
}

/// The place in the grid of 4 sinks, or of the next smaller number, or of the first.
std::size_t usual_sink(ha::RetentionGrid const& grid) {
  std::size_t place = 0;
  for (std::size_t i = 0; i < grid.sinks.size(); ++i) {
    if (grid.sinks[i] <= 4) place = i;
  }
  return place;
}

void add_retention(ReportInput const& input, Gallery& gallery) {
  auto const& retention = *input.retention;
  auto const& grid = retention.info.grid;
  std::size_t const sink = usual_sink(grid);
  bool const errors = retention.info.with_values;
  std::string text = quartile_header("window");
  bool loses = false;
  for (std::size_t w = 0; w < grid.windows.size(); ++w) {
    text += std::to_string(grid.windows[w]);
    append_quartiles(text, input, [&](std::size_t head) {
      auto const& sums = retention.heads[head];
      std::size_t const cell = grid.cell(sink, w);
      double const lost = 100 * (errors ? std::sqrt(sums.error_squared[cell] / sums.output_squared)
                                        : sums.mass[cell] / static_cast<double>(sums.rows));
      loses = loses || (lost > 0 && std::isfinite(lost));
      return lost > 0 ? lost : std::nan("");  // nothing on a logarithmic axis; a head without rows has no value
    });
  }
  // Where every window holds all tokens, nothing is lost and a logarithmic axis has nothing to show.
  if (!loses) return;
  gallery.data.push_back({"retention.tsv", text});

  std::string const sinks = std::to_string(grid.sinks[sink]);
  std::string const title = (errors ? "Output error over the window, " : "Attention lost over the window, ") + sinks +
                            (grid.sinks[sink] == 1 ? " sink kept" : " sinks kept");
  std::string const reading =
      errors ? "What a head's output is off by, relative to its size, when only " + sinks +
                   " sinks and a window are kept: the further down, the less a short window harms the head; the line "
                   "is the median over the heads of a type, the band holds the middle half of them."
             : "The share of attention that falls on dropped tokens when only " + sinks +
                   " sinks and a window are kept: the further down, the less a short window harms the head; the line "
                   "is the median over the heads of a type, the band holds the middle half of them.";
  gallery.pictures.push_back({PictureKind::wide, "retention", title, reading,
                              script(
                                  "retention", 900, 520,
                                  fill(R"gp(set title "@TITLE@"
set xlabel "window (tokens)"
set ylabel "@Y@"
set logscale x 2
set logscale y
set xrange [@FIRST@:@LAST@]
)gp" + std::string(curve_style) + quartile_plots(input, "retention.tsv", "linespoints pointtype 7 pointsize 0.35"),
                                       {{"TITLE", title},
                                        {"Y", errors ? "relative output error (%)" : "attention lost (%)"},
                                        {"FIRST", std::to_string(grid.windows.front())},
                                        {"LAST", std::to_string(grid.windows.size() == 1 ? 2 * grid.windows.front()
                                                                                         : grid.windows.back())}}))});
}

}  // namespace

void add_curves(ReportInput const& input, Gallery& gallery) {
  if (input.classifications.empty()) return;
  add_distances(input, gallery);
  if (input.retention) add_retention(input, gallery);
}

}  // namespace report
