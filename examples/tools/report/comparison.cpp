#include "tools/report/comparison.hpp"

#include "tools/report/style.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace report {

namespace {

constexpr int width_px = 1000;
constexpr int row_px = 26;
constexpr int top_px = 56;     ///< title
constexpr int bottom_px = 92;  ///< axis and legend
constexpr int gap = 28;
constexpr int right_px = 16;

/// Room for the labels.
int left_of(ComparisonPicture const& picture) {
  std::size_t longest = 0;
  for (auto const& bar : picture.bars) longest = std::max(longest, bar.label.size());
  return 28 + static_cast<int>(8.3 * static_cast<double>(longest));
}

/// Range of a panel, so that the numbers at the bars fit too.
struct Span {
  double low = 0;
  double high = 1;
  bool logarithmic = false;
};

Span span_of(ComparisonPicture const& picture, std::size_t panel) {
  Span span{picture.bars.front().from[panel], picture.bars.front().value[panel]};
  auto const take = [&](double value) {
    span.low = std::min(span.low, value);
    span.high = std::max(span.high, value);
  };
  for (auto const& bar : picture.bars) {
    take(bar.from[panel]);
    take(bar.value[panel]);
  }
  if (picture.reference) take((*picture.reference)[panel]);
  span.logarithmic = panel == 0 && span.low > 0 && span.high > 6 * span.low;
  constexpr double room = 0.22;  // of the panel, for numbers
  if (span.logarithmic) {
    span.low /= 1.03;
    span.high *= std::pow(span.high / span.low, room / (1 - room));
  } else {
    double const length = std::max(span.high - span.low, 1e-9);
    span.low -= 0.02 * length;
    span.high += length * room / (1 - room);
  }
  return span;
}

/// The bars' labels as gnuplot's tics.
std::string label_ticks(ComparisonPicture const& picture) {
  std::string ticks;
  for (std::size_t i = 0; i < picture.bars.size(); ++i) {
    ticks += (i > 0 ? ", \"" : "set ytics scale 0 noenhanced (\"") + picture.bars[i].label + "\" " + std::to_string(i);
  }
  return ticks + ")";
}

std::string panel_script(ComparisonPicture const& picture, std::size_t panel, int height) {
  int const left = left_of(picture);
  int const panel_width = (width_px - left - gap - right_px) / 2;
  int const from = left + static_cast<int>(panel) * (panel_width + gap);
  auto const across = [](int pixels) { return number("%.4f", static_cast<double>(pixels) / width_px); };
  auto const up = [&](int pixels) { return number("%.4f", static_cast<double>(pixels) / height); };
  Span const span = span_of(picture, panel);
  std::string reference;
  if (picture.reference) {
    reference = fill(R"gp(set arrow from @X@, graph 0 to @X@, graph 1 nohead linecolor rgb "#555555" dashtype 2 front
)gp",
                     {{"X", number("%.6g", (*picture.reference)[panel])}});
  }
  std::string const column = std::to_string(3 + 2 * panel);
  std::string const value = std::to_string(4 + 2 * panel);
  return fill(R"gp(unset arrow
set lmargin at screen @LEFT@
set rmargin at screen @RIGHT@
set bmargin at screen @BOTTOM@
set tmargin at screen @TOP@
set xlabel "@FIGURE@"
@SCALE@ x
set xrange [@LOW@:@HIGH@]
@TICKS@
@REFERENCE@plot "@NAME@.tsv" using @FROM@:1:@FROM@:@VALUE@:($1-0.36):($1+0.36):7 with boxxyerror fillcolor rgb variable notitle, \
  "" using @VALUE@:1:(sprintf("  @FORMAT@", $@VALUE@)) with labels left textcolor rgb "@INK@" notitle
)gp",
              {{"LEFT", across(from)},
               {"RIGHT", across(from + panel_width)},
               {"BOTTOM", up(bottom_px)},
               {"TOP", up(height - top_px)},
               {"FIGURE", picture.figures[panel]},
               {"SCALE", span.logarithmic ? "set logscale" : "unset logscale"},
               {"LOW", number("%.6g", span.low)},
               {"HIGH", number("%.6g", span.high)},
               {"TICKS", panel == 0 ? label_ticks(picture) : std::string("unset ytics")},
               {"REFERENCE", reference},
               {"FROM", column},
               {"FORMAT", panel == 0 ? "%.2f" : "%.3f"},
               {"NAME", picture.name},
               {"INK", std::string(ink)},
               {"VALUE", value}});
}

}  // namespace

void add_comparison(ComparisonPicture const& picture, Gallery& gallery) {
  if (picture.bars.empty()) return;
  auto const count = static_cast<int>(picture.bars.size());
  int const height = top_px + bottom_px + row_px * count;
  std::string data = "bar\tlabel\tfrom\t" + picture.figures[0] + "\tfrom\t" + picture.figures[1] + "\tcolor\n";
  for (int i = 0; i < count; ++i) {
    auto const& bar = picture.bars[static_cast<std::size_t>(i)];
    data += std::to_string(i) + "\t" + bar.label;
    for (std::size_t panel = 0; panel < 2; ++panel) {
      data += number("\t%.6g", bar.from[panel]) + number("\t%.6g", bar.value[panel]);
    }
    data += "\t0x" + bar.color.substr(1) + "\n";
  }
  gallery.data.push_back({picture.name + ".tsv", data});

  std::vector<LegendEntry> entries;
  for (auto const& [name, color] : picture.colors) entries.push_back({color, name});
  std::string body = legend(entries, {.width = width_px,
                                      .height = height,
                                      .left = 16,
                                      .bottom = 14,
                                      .columns = std::max<int>(1, static_cast<int>(entries.size())),
                                      .column_width = 120,
                                      .row_height = 20});
  if (picture.reference) {
    body += fill(R"gp(set label "dashed: @NAME@" at screen 0.98, screen @Y@ right textcolor rgb "@INK@" noenhanced
)gp",
                 {{"NAME", picture.reference_name}, {"Y", number("%.4f", 20.0 / height)}, {"INK", std::string(ink)}});
  }
  body += fill(R"gp(set label "@TITLE@" at screen 0.5, screen @Y@ center textcolor rgb "@INK@" noenhanced font ",16"
set datafile separator "\t"
set border 3
set grid xtics linecolor rgb "#C8C8C8" linewidth 0.5
set xtics out
set yrange [@LAST@:-0.6]
set multiplot
)gp",
               {{"TITLE", picture.title},
                {"Y", number("%.4f", static_cast<double>(height - 22) / height)},
                {"INK", std::string(ink)},
                {"LAST", number("%.1f", count - 0.4)}});
  body += panel_script(picture, 0, height);
  // Once for the whole picture.
  body += "unset label\nunset object\n" + panel_script(picture, 1, height) + "unset multiplot\n";
  gallery.pictures.push_back(
      {PictureKind::wide, picture.name, picture.title, picture.reading, script(picture.name, width_px, height, body)});
}

}  // namespace report
