#include "tools/report/style.hpp"

#include <algorithm>
#include <cstdio>

namespace report {

std::string readable(headaware::HeadType type) {
  std::string name(to_string(type));
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

std::string number(char const* format, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

std::string fill(std::string_view text, std::initializer_list<std::pair<std::string_view, std::string>> values) {
  std::string result(text);
  for (auto const& [name, value] : values) {
    std::string const mark = "@" + std::string(name) + "@";
    for (auto at = result.find(mark); at != std::string::npos; at = result.find(mark, at + value.size())) {
      result.replace(at, mark.size(), value);
    }
  }
  return result;
}

std::string script(std::string_view name, int width, int height, std::string_view body) {
  return fill(R"gp(# Draws @NAME@.svg and @NAME@.png; run in this folder: gnuplot @NAME@.gp
if (!exists("target")) target = "@NAME@"
set encoding utf8
set border linecolor rgb "@INK@"
set title textcolor rgb "@INK@"
set tics nomirror textcolor rgb "@INK@"
set format x "%g"
set format y "%g"
set xlabel textcolor rgb "@INK@"
set ylabel textcolor rgb "@INK@"
set cblabel textcolor rgb "@INK@"
set key textcolor rgb "@INK@" noenhanced
set style fill solid noborder
do for [format in "svg png"] {
unset label
unset object
unset arrow
if (format eq "svg") {
  set terminal svg size @WIDTH@,@HEIGHT@ font "DejaVu Sans,14" linewidth 1.2 name "@NAME@"
} else {
  if (strstrt(GPVAL_TERMINALS, "pngcairo")) {
    set terminal pngcairo size @WIDTH2@,@HEIGHT2@ font "DejaVu Sans,14" fontscale 1.6 linewidth 2.4 pointscale 2
  } else {
    set terminal png size @WIDTH2@,@HEIGHT2@ large
  }
}
set output target.".".format
@BODY@
set output
}
)gp",
              {{"WIDTH", std::to_string(width)},
               {"HEIGHT", std::to_string(height)},
               {"WIDTH2", std::to_string(2 * width)},
               {"HEIGHT2", std::to_string(2 * height)},
               {"BODY", std::string(body)},
               {"NAME", std::string(name)},
               {"INK", std::string(ink)}});
}

std::string legend(std::vector<LegendEntry> const& entries, LegendPlace const& place) {
  constexpr int box = 12;
  std::string text;
  int at = 0;
  for (auto const& entry : entries) {
    int const x = place.left + at % place.columns * place.column_width;
    int const y = place.bottom - at / place.columns * place.row_height;
    auto const across = [&](int pixels) { return number("%.4f", static_cast<double>(pixels) / place.width); };
    auto const up = [&](double pixels) { return number("%.4f", pixels / place.height); };
    text += fill(
        R"gp(set object rectangle from screen @X@, screen @Y@ to screen @X1@, screen @Y1@ fillcolor rgb "@COLOR@" fillstyle solid noborder
set label "@TEXT@" at screen @X2@, screen @YTEXT@ left textcolor rgb "@INK@" noenhanced
)gp",
        {{"X", across(x)},
         {"X1", across(x + box)},
         {"X2", across(x + box + 6)},
         {"Y", up(y)},
         {"Y1", up(y + box)},
         {"YTEXT", up(y + 0.5 * box)},
         {"COLOR", std::string(entry.color)},
         {"TEXT", entry.text},
         {"INK", std::string(ink)}});
    ++at;
  }
  return text;
}

std::string viridis() {
  return "set palette defined (0 \"#440154\", 1 \"#482878\", 2 \"#3e4989\", 3 \"#31688e\", 4 \"#26828e\", "
         "5 \"#1f9e89\", 6 \"#35b779\", 7 \"#6ece58\", 8 \"#b5de2b\", 9 \"#fde725\")\n";
}

}  // namespace report
