#include "tools/report/gallery.hpp"
#include "tools/report/style.hpp"

#include <headaware/classify/summary.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace report {

namespace ha = headaware;

namespace {

/// One line per head; what every heat map and the scatter plot read.
std::string heads_table(ReportInput const& input) {
  std::string text = "layer\thead\tentropy_nats\tsink_percent\tlocal_percent\ttype\twindow_tokens\ttype_name\n";
  for (std::size_t i = 0; i < input.classifications.size(); ++i) {
    auto const& s = input.statistics.heads[i];
    auto const& c = input.classifications[i];
    std::string const window = c.compression_strategy == ha::CompressionStrategy::prune ? "prune"
                               : c.can_limit_window ? std::to_string(c.recommended_window)
                                                    : "full";
    text += std::to_string(s.layer_idx) + "\t" + std::to_string(s.head_idx) + "\t" + number("%.6g", s.mean_entropy) +
            "\t" + number("%.6g", 100 * s.sink_ratio) + "\t" + number("%.6g", 100 * s.position_preference.local) +
            "\t" + std::to_string(static_cast<int>(c.head_type)) + "\t" + window + "\t" +
            std::string(to_string(c.head_type)) + "\n";
  }
  return text;
}

/// The least of 1, 2, 4, 8, ... that leaves room for the numbers on an axis.
int tick_step(int count) {
  int step = 1;
  while (count / step > 16) step *= 2;
  return step;
}

/// A picture of the grid of heads. @param entries  of a legend below the map
std::string heat_map(ReportInput const& input, std::string_view name, std::string_view title,
                     std::vector<LegendEntry> const& entries, std::string_view body) {
  auto const& info = input.statistics.model_info;
  int const width = std::clamp(15 * info.num_layers, 400, 600);
  int const height = std::clamp(15 * info.num_heads, 180, 600);
  constexpr int left = 70;
  constexpr int right = 110;
  constexpr int top = 50;
  constexpr int columns = 3;
  constexpr int row_height = 22;
  int const rows = (static_cast<int>(entries.size()) + columns - 1) / columns;
  int const bottom = 64 + (rows > 0 ? 10 + row_height * rows : 0);
  // Half a cell, less half the gap to the next; cells of many heads are too small for one.
  bool const gaps = width / info.num_layers >= 10 && height / info.num_heads >= 10;
  auto const half = [&](int pixels, int cells) { return number("%.4f", gaps ? 0.5 - 0.6 * cells / pixels : 0.5); };
  auto const x = [&](int at) { return number("%.4f", static_cast<double>(at) / (left + width + right)); };
  auto const y = [&](int at) { return number("%.4f", static_cast<double>(at) / (bottom + height + top)); };
  std::string const head = fill(R"gp(set lmargin at screen @LEFT@
set rmargin at screen @RIGHT@
set bmargin at screen @BOTTOM@
set tmargin at screen @TOP@
set title "@TITLE@" noenhanced
set xlabel "layer" offset 0,0.4
set ylabel "query head"
set xrange [-0.5:@LAYERS@-0.5]
set yrange [-0.5:@HEADS@-0.5]
set xtics out 0,@XSTEP@
set ytics out 0,@YSTEP@
unset key
set colorbox user origin screen @BARX@, screen @BOTTOM@ size screen @BARWIDTH@, screen @BARHEIGHT@
dx = @DX@
dy = @DY@
)gp",
                                {{"LEFT", x(left)},
                                 {"RIGHT", x(left + width)},
                                 {"BOTTOM", y(bottom)},
                                 {"TOP", y(bottom + height)},
                                 {"BARX", x(left + width + 16)},
                                 {"BARWIDTH", x(16)},
                                 {"BARHEIGHT", y(height)},
                                 {"TITLE", std::string(title)},
                                 {"LAYERS", std::to_string(info.num_layers)},
                                 {"HEADS", std::to_string(info.num_heads)},
                                 {"XSTEP", std::to_string(tick_step(info.num_layers))},
                                 {"YSTEP", std::to_string(tick_step(info.num_heads))},
                                 {"DX", half(width, info.num_layers)},
                                 {"DY", half(height, info.num_heads)}});
  LegendPlace const place{.width = left + width + right,
                          .height = bottom + height + top,
                          .left = left,
                          .bottom = row_height * (rows - 1) + 10,
                          .columns = columns,
                          .column_width = (width + right) / columns,
                          .row_height = row_height};
  return script(name, place.width, place.height, head + legend(entries, place) + std::string(body));
}

std::string continuous(std::string_view label, std::string_view range, int column) {
  return viridis() +
         fill(R"gp(set cblabel "@LABEL@"
set cbrange [@RANGE@]
plot "heads.tsv" skip 1 using 1:2:(dx):(dy):@COLUMN@ with boxxyerror fillcolor palette)gp",
              {{"LABEL", std::string(label)}, {"RANGE", std::string(range)}, {"COLUMN", std::to_string(column)}});
}

std::string types(ReportInput const& input, std::vector<LegendEntry>& entries) {
  auto const summary = ha::summarize(input.classifications);
  std::string plots;
  for (std::size_t type = 0; type < ha::num_head_types; ++type) {
    auto const heads = summary.type_counts[type];
    if (heads == 0) continue;
    entries.push_back(
        {type_colors[type], readable(static_cast<ha::HeadType>(type)) + " (" + std::to_string(heads) + ")"});
    plots += fill(
        R"gp(@AND@"heads.tsv" skip 1 using ($6 == @TYPE@ ? $1 : NaN):2:(dx):(dy) with boxxyerror fillcolor rgb "@COLOR@")gp",
        {{"AND", plots.empty() ? "plot " : ", \\\n  "},
         {"TYPE", std::to_string(type)},
         {"COLOR", std::string(type_colors[type])}});
  }
  return plots;
}

/// Marks of a logarithmic scale: powers of two and, of a scale of few, what lies half way between them.
std::string window_ticks(std::int32_t least, std::int32_t most) {
  bool const halves = most / least < 16;
  std::string ticks;
  auto add = [&](std::int64_t at) {
    if (at >= least && at <= most) ticks += (ticks.empty() ? "" : ", ") + std::to_string(at);
  };
  for (std::int64_t power = 1; power <= most; power *= 2) {
    add(power);
    if (halves && power >= 2) add(power + power / 2);
  }
  return ticks.empty() ? std::to_string(least) : ticks;
}

std::string windows(ReportInput const& input, std::vector<LegendEntry>& entries) {
  std::int32_t least = std::numeric_limits<std::int32_t>::max();
  std::int32_t most = 0;
  std::int64_t full = 0;
  std::int64_t pruned = 0;
  for (auto const& c : input.classifications) {
    if (c.compression_strategy == ha::CompressionStrategy::prune) {
      ++pruned;
    } else if (c.can_limit_window) {
      least = std::min(least, c.recommended_window);
      most = std::max(most, c.recommended_window);
    } else {
      ++full;
    }
  }
  std::string plots;
  auto add = [&](std::string const& clause) { plots += (plots.empty() ? "plot " : ", \\\n  ") + clause; };
  auto constant = [&](std::string_view value, std::string_view color, std::int64_t heads, std::string_view title) {
    if (heads == 0) return;
    entries.push_back({color, std::string(title) + " (" + std::to_string(heads) + ")"});
    add(fill(
        R"gp("heads.tsv" skip 1 using (stringcolumn(7) eq "@VALUE@" ? $1 : NaN):2:(dx):(dy) with boxxyerror fillcolor rgb "@COLOR@")gp",
        {{"VALUE", std::string(value)}, {"COLOR", std::string(color)}}));
  };
  std::string setup = viridis();
  if (most > 0) {
    setup +=
        fill("set logscale cb 2\nset cblabel \"window (tokens)\"\nset cbrange [@LEAST@:@MOST@]\nset cbtics (@TICKS@)\n",
             {{"TICKS", window_ticks(least, most)},
              {"LEAST", std::to_string(least)},
              {"MOST", std::to_string(most == least ? 2 * most : most)}});
    add(R"gp("heads.tsv" skip 1 using (stringcolumn(7) eq "full" || stringcolumn(7) eq "prune" ? NaN : $1):2:(dx):(dy):7 with boxxyerror fillcolor palette)gp");
  } else {
    setup += "unset colorbox\n";
  }
  constant("full", full_color, full, "full: all tokens");
  constant("prune", prune_color, pruned, "prune: no token");
  return setup + plots;
}

}  // namespace

void add_heat_maps(ReportInput const& input, Gallery& gallery) {
  gallery.data.push_back({"heads.tsv", heads_table(input)});
  auto const& info = input.statistics.model_info;
  auto add = [&](char const* name, std::string const& title, std::string reading, std::string const& body,
                 std::vector<LegendEntry> const& entries = {}) {
    gallery.pictures.push_back(
        {PictureKind::map, name, title, std::move(reading), heat_map(input, name, title, entries, body)});
  };

  std::vector<LegendEntry> entries;
  std::string body = types(input, entries);
  add("types", "Type of each head",
      "One square per query head: its colour is the type that the rules give it; the number after each type counts its "
      "heads.",
      body, entries);

  double entropy = 0;
  for (auto const& s : input.statistics.heads) entropy = std::max(entropy, s.mean_entropy);
  add("entropy", "Mean attention entropy",
      "Dark heads look at few tokens, bright ones spread over many: e to the entropy is about the number of tokens "
      "looked at (1.5 nats: 4 to 5; 3 nats: 20).",
      continuous("entropy (nats)", "0:" + number("%.1f", std::max(0.5, std::ceil(2 * entropy) / 2)), 3));
  add("sinks", "Attention on the first " + std::to_string(info.sink_size) + " tokens",
      "Bright heads spend most of their attention on the sinks, which a cache must therefore never drop.",
      continuous("share of attention (%)", "0:100", 4));
  add("local", "Attention on the last " + std::to_string(info.local_window + 1) + " tokens",
      "Bright heads look at their neighbourhood (the query's own token and the " + std::to_string(info.local_window) +
          " before it); a short window serves them.",
      continuous("share of attention (%)", "0:100", 5));

  entries.clear();
  body = windows(input, entries);
  add("windows", "Recommended window",
      "How many recent tokens the rules let each head keep, on a logarithmic scale; grey heads keep everything, pink "
      "ones nothing.",
      body, entries);
}

}  // namespace report
