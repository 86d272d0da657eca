#include "tools/report/gallery.hpp"
#include "tools/report/style.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace report {

namespace ha = headaware;

namespace {

/// Lower quartile, median and upper quartile, tab before each; "-" of none.
std::string quartiles(std::vector<double> values) {
  std::string text;
  std::sort(values.begin(), values.end());
  for (double const share : {0.25, 0.5, 0.75}) {
    auto const place = static_cast<std::size_t>(std::lround(share * static_cast<double>(values.size() - 1)));
    text += "\t" + (values.empty() ? "-" : number("%.6g", values[place]));
  }
  return text;
}

}  // namespace

void add_rounding(ReportInput const& input, Gallery& gallery) {
  if (!input.retention || input.retention->info.formats.empty()) return;
  auto const& retention = *input.retention;
  auto const& formats = retention.info.formats;
  std::string text = "place\tformat\tkeys_25\tkeys_50\tkeys_75\tvalues_25\tvalues_50\tvalues_75\n";
  std::string tics;
  bool any = false;
  for (std::size_t f = 0; f < formats.size(); ++f) {
    std::array<std::vector<double>, 2> errors;  // of keys and of values
    for (auto const& sums : retention.heads) {
      double const output = sums.output_squared / static_cast<double>(sums.rows);
      auto const add = [&](std::vector<double> const& squared, std::vector<double>& to) {
        double const error = 100 * std::sqrt(squared[f] / static_cast<double>(sums.rounding.rows) / output);
        if (error > 0 && std::isfinite(error)) to.push_back(error);  // the axis is logarithmic
      };
      add(sums.rounding.key_error_squared, errors[0]);
      add(sums.rounding.value_error_squared, errors[1]);
    }
    any = any || !errors[0].empty() || !errors[1].empty();
    text += std::to_string(f) + "\t" + formats[f] + quartiles(errors[0]) + quartiles(errors[1]) + "\n";
    tics += (f == 0 ? "\"" : ", \"") + formats[f] + "\" " + std::to_string(f);
  }
  if (!any) return;
  gallery.data.push_back({"rounding.tsv", text});
  gallery.pictures.push_back(
      {PictureKind::wide, "rounding", "Output error of row formats",
       "What a head's output is off by, relative to its size, when keys alone or values alone go through a format: the "
       "point is the median over all query heads, the bar holds the middle half of them. Errors fall to about a half a "
       "bit.",
       script("rounding", 900, 420,
              fill(R"gp(set title "Output error of row formats"
set ylabel "relative output error (%)"
set logscale y
set xrange [-0.5:@LAST@.5]
set xtics out (@TICS@) noenhanced
set ytics out
set grid ytics linecolor rgb "#C8C8C8" linewidth 0.5
set key outside right top reverse Left samplen 1.5 spacing 1.3
plot "rounding.tsv" skip 1 using ($1-0.1):4:3:5 with yerrorbars pointtype 7 pointsize 0.7 linecolor rgb "#0072B2" linewidth 1.5 title "keys", \
  "rounding.tsv" skip 1 using ($1+0.1):7:6:8 with yerrorbars pointtype 5 pointsize 0.7 linecolor rgb "#D55E00" linewidth 1.5 title "values")gp",
                   {{"LAST", std::to_string(formats.size() - 1)}, {"TICS", tics}}))});
}

}  // namespace report
