#include "tools/report/size_curves.hpp"

#include "tools/report/style.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <string_view>

namespace report {

namespace {

/// A row of the data: a point of one curve.
struct Row {
  std::size_t curve;
  SizePoint point;
};

std::vector<Row> rows_of(SizePicture const& picture) {
  std::vector<Row> rows;
  for (std::size_t curve = 0; curve < picture.curves.size(); ++curve) {
    for (SizePoint const& point : picture.curves[curve].points) {
      if (point.percent > 0 && std::isfinite(point.value)) rows.push_back({curve, point});
    }
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](Row const& a, Row const& b) { return a.point.percent < b.point.percent; });
  return rows;
}

/// One column a curve, "-" where the row is another's: gnuplot then joins a curve's points.
std::string data_of(SizePicture const& picture, std::vector<Row> const& rows) {
  std::string text = "percent";
  for (SizeCurve const& curve : picture.curves) text += "\t" + curve.name;
  text += "\n";
  for (Row const& row : rows) {
    text += number("%.6g", row.point.percent);
    for (std::size_t curve = 0; curve < picture.curves.size(); ++curve) {
      text += "\t" + (curve == row.curve ? number("%.6g", row.point.value) : std::string("-"));
    }
    text += "\n";
  }
  return text;
}

/// Halves of halves of the whole within the sizes, labelled by their multiples; the smallest size where there are none.
std::string size_tics(double first, double last, double factor) {
  std::string tics;
  for (double size = 100; size >= first * 0.99; size /= 2) {
    if (size > last * 1.01) continue;
    tics += (tics.empty() ? "\"" : ", \"") + number("%.3g", size * factor) + "\" " + number("%.6g", size);
  }
  return tics.empty() ? "\"" + number("%.3g", first * factor) + "\" " + number("%.6g", first) : tics;
}

/// Text as gnuplot's enhanced mode shows it.
std::string plain(std::string const& text) {
  std::string result;
  for (char const letter : text) {
    if (std::string_view("_^@&~{}\\").find(letter) != std::string_view::npos) result += "\\\\";
    result += letter;
  }
  return result;
}

std::string plots_of(SizePicture const& picture, std::vector<Row> const& rows, std::string const& file) {
  std::string plots;
  if (picture.full) {
    plots += fill(R"gp(plot @VALUE@ with lines linecolor rgb "@INK@" dashtype 2 linewidth 1.5 title "full, 16 bits")gp",
                  {{"VALUE", number("%.9g", *picture.full)}, {"INK", std::string(ink)}});
  }
  // Filled shapes that differ also without colours.
  constexpr int shapes[] = {7, 5, 9, 13, 11};
  for (std::size_t curve = 0; curve < picture.curves.size(); ++curve) {
    bool const shown = std::any_of(rows.begin(), rows.end(), [&](Row const& row) { return row.curve == curve; });
    if (!shown) continue;
    plots += fill(
        R"gp(@AND@"@FILE@" skip 1 using 1:@COLUMN@ with linespoints linecolor rgb "@COLOR@" linewidth 2 pointtype @SHAPE@ pointsize 0.8 title "@NAME@")gp",
        {{"AND", plots.empty() ? "plot " : ", \\\n  "},
         {"FILE", file},
         {"COLUMN", std::to_string(curve + 2)},
         {"COLOR", picture.curves[curve].color},
         {"SHAPE", std::to_string(shapes[curve % std::size(shapes)])},
         {"NAME", picture.curves[curve].name}});
  }
  return plots;
}

}  // namespace

void add_size_picture(SizePicture const& picture, Gallery& gallery) {
  std::vector<Row> const rows = rows_of(picture);
  if (rows.empty()) return;
  double const first = rows.front().point.percent;
  double const last = rows.back().point.percent;
  double least = picture.full.value_or(rows.front().point.value);
  double most = least;
  for (Row const& row : rows) {
    least = std::min(least, row.point.value);
    most = std::max(most, row.point.value);
  }
  std::string const file = picture.name + ".tsv";
  gallery.data.push_back({file, data_of(picture, rows)});
  std::string body = fill(R"gp(set title "@TITLE@\n{/*0.8 @SUBTITLE@}" enhanced offset 0,0.5
set xlabel "@SIZE@"
set ylabel "@FIGURE@"
set logscale x 2
set xrange [@LEFT@:@RIGHT@]
set xtics out (@TICS@)
set ytics out
set datafile missing "-"
set grid linecolor rgb "#C8C8C8" linewidth 0.5
set key outside right top reverse Left samplen 2 spacing 1.3
)gp",
                          {{"TITLE", picture.title},
                           {"SUBTITLE", plain(picture.subtitle)},
                           {"FIGURE", picture.figure},
                           {"SIZE", picture.size},
                           {"LEFT", number("%.6g", first / 1.2)},
                           {"RIGHT", number("%.6g", last * 1.2)},
                           {"TICS", size_tics(first, last, 1)}});
  if (picture.full_mib > 0) {
    // The same axis with other words: linked axes refuse to be logarithmic.
    body += fill(R"gp(set logscale x2 2
set x2range [@LEFT@:@RIGHT@]
set x2tics out textcolor rgb "@INK@" (@TICS@)
set x2label "keys and values (MiB)" textcolor rgb "@INK@"
)gp",
                 {{"LEFT", number("%.6g", first / 1.2)},
                  {"RIGHT", number("%.6g", last * 1.2)},
                  {"TICS", size_tics(first, last, picture.full_mib / 100)},
                  {"INK", std::string(ink)}});
  }
  if (picture.from_zero) {
    body += "set yrange [0:" + number("%.6g", most > 0 ? most * 1.1 : 1) + "]\n";
  } else if (most > 10 * least) {
    body += "set logscale y\n";
  } else {
    double const room = most > least ? 0.08 * (most - least) : 0.05 * most;
    body += "set yrange [" + number("%.6g", least - room) + ":" + number("%.6g", most + room) + "]\n";
  }
  gallery.pictures.push_back({PictureKind::wide, picture.name, picture.title, picture.reading,
                              script(picture.name, 900, 520, body + plots_of(picture, rows, file))});
}

}  // namespace report
