#include "tools/report/page.hpp"

#include "tools/report/gnuplot.hpp"
#include "tools/report/style.hpp"

#include <headaware/classify/summary.hpp>
#include <headaware/classify/validation.hpp>
#include <headaware/version.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace report {

namespace ha = headaware;

namespace {

constexpr std::string_view css = R"css(
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f7f9; --text: #222222; --faint: #5c6370; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181d; --card: #1d2128; --text: #e4e6ea; --faint: #a0a6b1; --line: #363c46; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--page); color: var(--text);
       font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 28px; line-height: 1.25; }
h2 { margin: 40px 0 12px; font-size: 20px; }
p { margin: 8px 0; }
.faint, figcaption, caption { color: var(--faint); }
table { border-collapse: collapse; margin: 8px 0; font-size: 15px; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
th { font-weight: 600; }
.wide { overflow-x: auto; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 8px; border-radius: 2px; }
.bar { display: flex; width: 240px; height: 12px; border-radius: 2px; overflow: hidden; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 20px; }
figure { margin: 0 0 20px; padding: 14px; background: var(--card); border-radius: 8px; color: var(--text); }
.maps figure { margin: 0; }
.maps { margin-bottom: 20px; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: 8px; font-size: 14px; }
.note { padding: 12px 16px; background: var(--card); border-left: 4px solid #D55E00; }
)css";

std::string escaped(std::string_view text) {
  std::string result;
  for (char const c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

/// The drawing as a part of the page: no header of its own, ids that no other drawing has, and the page's text colour.
std::string embedded(std::string svg, Picture const& picture) {
  auto const start = svg.find("<svg");
  auto const body = svg.find('>', start);
  auto const box = svg.find("viewBox=", start);
  if (start == std::string::npos || body == std::string::npos || box > body) {
    throw ha::FormatError({"picture", "an SVG with a viewBox", "something else", picture.name + ".svg"});
  }
  std::string const view = svg.substr(box, svg.find('"', box + 9) + 1 - box);
  // viewBox="0 0 WIDTH HEIGHT": never shown larger than it was drawn.
  std::string const width = view.substr(13, view.find(' ', 13) - 13);
  svg = svg.substr(body + 1);
  // What gnuplot names would show as tooltips.
  for (auto at = svg.find("<title>"); at != std::string::npos; at = svg.find("<title>")) {
    svg.erase(at, svg.find("</title>", at) + 8 - at);
  }
  for (char const quote : {'"', '\''}) {
    std::string const id = std::string("id=") + quote;
    replace_all(svg, " " + id, "  " + id + picture.name + "-");
    std::string const link = std::string("href=") + quote + "#";
    replace_all(svg, link, link + picture.name + "-");
  }
  replace_all(svg, "url(#", "url(#" + picture.name + "-");
  replace_all(svg, " color=\"black\"", "");
  replace_all(svg, " color=\"white\"", "");
  replace_all(svg, "stroke=\"black\"", "stroke=\"currentColor\"");
  replace_all(svg, "rgb( 34,  34,  34)", "currentColor");
  replace_all(svg, "rgb(34,34,34)", "currentColor");
  replace_all(svg, "font-family=\"DejaVu Sans\"", "font-family=\"system-ui, DejaVu Sans, sans-serif\"");
  return fill(R"(<svg @VIEW@ style="max-width:@WIDTH@px" role="img" aria-label="@TITLE@">)",
              {{"VIEW", view}, {"WIDTH", width}, {"TITLE", escaped(picture.title)}}) +
         svg;
}

std::string swatch(std::size_t type) {
  return fill(R"(<span class="swatch" style="background:@COLOR@"></span>)",
              {{"COLOR", std::string(type_colors[type])}});
}

std::string row(std::string_view name, std::string_view value) {
  return "<tr><td>" + escaped(name) + "</td><td class=\"text\">" + escaped(value) + "</td></tr>\n";
}

std::string model_table(ReportInput const& input) {
  auto const& info = input.statistics.model_info;
  auto const& t = input.thresholds;
  std::string text = "<h2>Model and parameters</h2>\n<table>\n";
  text += row("layers", std::to_string(info.num_layers));
  text += row("query heads per layer", std::to_string(info.num_heads));
  for (auto const& [name, value] : input.parameters) text += row(name, value);
  text += row("sinks", std::to_string(info.sink_size) + " tokens");
  text += row("local window", "the query's own and " + std::to_string(info.local_window) + " tokens before it");
  text += row("recent part", number("%g", 100 * info.recent_ratio) + " % of a chunk");
  text += row("entropy thresholds", number("%g", t.low_entropy) + " and " + number("%g", t.high_entropy) + " nats");
  text += row("share thresholds",
              "sinks " + number("%g", 100 * t.high_sink) + " %, local " + number("%g", 100 * t.high_local) + " %");
  text += row("dead below a uniformity of", number("%g", t.dead_uniformity) + " nats");
  if (input.retention) {
    auto const& r = input.retention->info;
    text += row("retention", std::string(r.with_values ? "output error" : "mass alone") +
                                 (r.with_output_metric ? " after the output projection" : "") + ", queries from " +
                                 std::to_string(r.first_query) + ", every " + std::to_string(r.query_stride));
  }
  return text + "</table>\n";
}

std::string type_table(ReportInput const& input, ha::ClassificationSummary const& summary) {
  auto const pair = [](ha::MeanDeviation const& value, double scale, char const* format) {
    return number(format, scale * value.mean) + " ± " + number(format, scale * value.deviation);
  };
  std::string text =
      "<h2>Types of heads</h2>\n<div class=\"wide\"><table>\n<caption>Mean ± standard deviation over the heads of a "
      "type.</caption>\n<tr><th>type</th><th>heads</th><th>share</th><th>entropy (nats)</th><th>sinks (%)</th>"
      "<th>local (%)</th></tr>\n";
  for (auto const& type : ha::type_statistics(input.statistics, input.classifications)) {
    text += "<tr><td>" + swatch(static_cast<std::size_t>(type.type)) + readable(type.type) + "</td><td>" +
            std::to_string(type.heads) + "</td><td>" + number("%.1f", summary.percentage(type.heads)) + " %</td><td>" +
            pair(type.entropy, 1, "%.2f") + "</td><td>" + pair(type.sink, 100, "%.1f") + "</td><td>" +
            pair(type.local, 100, "%.1f") + "</td></tr>\n";
  }
  text += "</table></div>\n<div class=\"wide\"><table>\n<tr><th>strategy</th><th>heads</th><th>share</th></tr>\n";
  for (std::size_t i = 0; i < ha::num_compression_strategies; ++i) {
    auto const heads = summary.strategy_counts[i];
    text += "<tr><td>" + std::string(ha::compression_strategy_names[i]) + "</td><td>" + std::to_string(heads) +
            "</td><td>" + number("%.1f", summary.percentage(heads)) + " %</td></tr>\n";
  }
  text += "</table></div>\n<p>" + std::to_string(summary.compressible_heads) + " of " +
          std::to_string(summary.total_heads) + " heads (" +
          number("%.1f", summary.percentage(summary.compressible_heads)) + " %) need no full cache, " +
          std::to_string(summary.sink_heads) + " (" + number("%.1f", summary.percentage(summary.sink_heads)) +
          " %) need their sinks. These rules are for reading a model: at equal memory, windows planned by output "
          "error, and even uniform ones, lose less.</p>\n";
  return text;
}

std::string layer_table(ReportInput const& input) {
  auto const& info = input.statistics.model_info;
  std::string text =
      "<h2>Layers</h2>\n<div class=\"wide\"><table>\n<caption>Means over the heads of a layer.</caption>\n<tr>"
      "<th>layer</th><th>entropy (nats)</th><th>sinks (%)</th><th>local (%)</th><th class=\"text\">types</th></tr>\n";
  std::size_t next = 0;
  for (std::int32_t layer = 0; layer < info.num_layers; ++layer) {
    std::int32_t const heads = info.layers.num_layers() > 0 ? info.layers.layer(layer).num_query_heads : info.num_heads;
    if (heads == 0) continue;
    double entropy = 0;
    double sinks = 0;
    double local = 0;
    std::array<int, ha::num_head_types> types{};
    for (std::int32_t head = 0; head < heads; ++head, ++next) {
      auto const& s = input.statistics.heads[next];
      entropy += s.mean_entropy / heads;
      sinks += 100 * s.sink_ratio / heads;
      local += 100 * s.position_preference.local / heads;
      ++types[static_cast<std::size_t>(input.classifications[next].head_type)];
    }
    text += fill(
        R"(<tr><td>@LAYER@</td><td>@ENTROPY@</td><td>@SINKS@</td><td>@LOCAL@</td><td class="text"><div class="bar">)",
        {{"LAYER", std::to_string(layer)},
         {"ENTROPY", number("%.2f", entropy)},
         {"SINKS", number("%.1f", sinks)},
         {"LOCAL", number("%.1f", local)}});
    for (std::size_t type = 0; type < types.size(); ++type) {
      if (types[type] == 0) continue;
      text += fill(R"(<span style="flex:@HEADS@;background:@COLOR@" title="@HEADS@ @TYPE@"></span>)",
                   {{"HEADS", std::to_string(types[type])},
                    {"COLOR", std::string(type_colors[type])},
                    {"TYPE", readable(static_cast<ha::HeadType>(type))}});
    }
    text += "</div></td></tr>\n";
  }
  return text + "</table></div>\n";
}

std::string picture_section(std::vector<Picture> const& pictures, std::vector<std::string> const& drawings) {
  std::string text = "<h2>Pictures</h2>\n";
  if (drawings.empty()) return text + "<p class=\"note\">No pictures: " + escaped(gnuplot_missing) + ".</p>\n";
  // Heat maps, which come first, side by side where there is room; the others are wide.
  bool grid = false;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    bool const map = pictures[i].kind == PictureKind::map;
    if (map != grid) text += map ? "<div class=\"maps\">\n" : "</div>\n";
    grid = map;
    text += "<figure id=\"" + pictures[i].name + "\">\n" + embedded(drawings[i], pictures[i]) + "\n<figcaption>" +
            escaped(pictures[i].reading) + "</figcaption>\n</figure>\n";
  }
  return text + (grid ? "</div>\n" : "");
}

}  // namespace

std::string page(ReportInput const& input, std::vector<Picture> const& pictures,
                 std::vector<std::string> const& drawings) {
  auto const summary = ha::summarize(input.classifications);
  std::string const title = (input.title.empty() ? "" : input.title + ": ") + "attention heads";
  std::string const version = std::to_string(HEADAWARE_VERSION_MAJOR) + "." + std::to_string(HEADAWARE_VERSION_MINOR) +
                              "." + std::to_string(HEADAWARE_VERSION_PATCH);
  std::string text = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  text += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" + escaped(title) +
          "</title>\n<style>" + std::string(css) + "</style>\n</head>\n<body>\n";
  text += "<h1>" + escaped(title) + "</h1>\n<p class=\"faint\">What the " + std::to_string(summary.total_heads) +
          " query heads look at, and what a cache may drop. Made by headaware " + version + ".</p>\n";
  if (!input.notice.empty()) text += "<p class=\"note\">" + escaped(input.notice) + "</p>\n";
  text += type_table(input, summary) + picture_section(pictures, drawings) + layer_table(input) + model_table(input);
  return text + "</body>\n</html>\n";
}

}  // namespace report
