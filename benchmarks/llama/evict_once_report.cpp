#include "llama/evict_once.hpp"
#include "llama/run_values.hpp"
#include "tools/report/size_curves.hpp"
#include "tools/report/style.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/json_text.hpp"

#include <headaware/io/file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>

namespace llama_adapter {

namespace ha = headaware;

namespace {

nlohmann::ordered_json json_of(OnceRun const& run) {
  return {{"method", run.method},
          {"size", run.size},
          {"mean_kept", finite_or_null(run.mean_kept)},
          {"perplexity", finite_or_null(run.perplexity)},
          {"perplexity_error", finite_or_null(run.perplexity_error)},
          {"gap_closed", finite_or_null(run.closed.share)},
          {"gap_closed_error", finite_or_null(run.closed.standard_error)},
          {"copy_nll", finite_or_null(run.copy_nll)},
          {"copy_nll_error", finite_or_null(run.copy_nll_error)},
          {"lookup_accuracy", finite_or_null(run.lookup)},
          {"lookup_accuracy_error", finite_or_null(run.lookup_error)},
          {"select_seconds", finite_or_null(run.select_seconds)},
          {"compress_seconds", finite_or_null(run.compress_seconds)},
          {"plan", run.plan}};
}

/// "18.22 ± 0.31": a mean and its standard error over pieces; "-" where it was not measured.
std::string plus_minus(char const* format, double value, double error) {
  if (!std::isfinite(value)) return "-";
  return report::number(format, value) + (std::isfinite(error) ? " ± " + report::number(format, error) : std::string());
}

constexpr std::array<char const*, 3> once_pictures{"once_perplexity", "once_copying", "once_lookup"};

/// One line per method, over the share of the prefix that it keeps.
report::SizePicture once_picture_of(std::vector<OnceRun> const& runs, std::int64_t prefix, double OnceRun::*figure) {
  constexpr std::array<char const*, 10> colors{"#000000", "#0072B2", "#E69F00", "#56B4E9", "#CC79A7",
                                               "#D55E00", "#8C564B", "#009E73", "#332288", "#999933"};
  static_assert(colors.size() == once_methods.size());
  report::SizePicture picture;
  picture.size = "kept of the prefix (%)";
  for (std::size_t i = 0; i < once_methods.size(); ++i) picture.curves.push_back({once_methods[i], colors[i], {}});
  for (OnceRun const& run : runs) {
    if (run.method == "full") {
      if (std::isfinite(run.*figure)) picture.full = run.*figure;
      continue;
    }
    auto const curve = std::find_if(picture.curves.begin(), picture.curves.end(),
                                    [&](report::SizeCurve const& one) { return one.name == run.method; });
    curve->points.push_back({100 * run.mean_kept / static_cast<double>(prefix), run.*figure});
  }
  return picture;
}

void write_once_pictures(std::filesystem::path const& folder, OnceAbout const& about, OnceOptions const& options,
                         std::vector<OnceRun> const& runs) {
  report::Gallery gallery;
  auto const add = [&](std::size_t which, double OnceRun::*figure, std::string const& title, std::string const& axis,
                       std::string const& reading, bool from_zero) {
    report::SizePicture picture = once_picture_of(runs, options.prefix, figure);
    picture.name = once_pictures.at(which);
    picture.title = title;
    picture.subtitle = about.model + " over " + about.text + ", " + std::to_string(options.prefix) +
                       " tokens read, evicted once, " + std::to_string(options.continuation) + " read after them";
    picture.figure = axis;
    picture.reading = reading;
    picture.from_zero = from_zero;
    add_size_picture(picture, gallery);
  };
  add(0, &OnceRun::perplexity, "Perplexity of what is read on", "perplexity of continuations",
      "The lower, the better a model goes on after a prefix of which it keeps so much.", false);
  add(1, &OnceRun::copy_nll, "Copying a prefix", "NLL of the prefix given again (nats per token)",
      "The lower, the better a model finds again what it has read.", true);
  add(2, &OnceRun::lookup, "Looking up numbers of words", "share of digits that are the likeliest token",
      "The higher, the more of a list a model can still answer for.", true);
  (void)report::write_pictures(folder, gallery, once_pictures);
}

/// "12.3 ms (0.1 %)": seconds, and their share of a prefill.
std::string beside_prefill(double seconds, double prefill) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.1f ms (%.2f %%)", 1e3 * seconds, 100 * seconds / prefill);
  return text;
}

}  // namespace

std::string once_table(std::vector<OnceRun> const& runs, OnceCost const& cost) {
  std::string text =
      "| method | size | kept | perplexity | gap closed | copy NLL | lookup | select_tokens | compress |\n"
      "|---|---|---|---|---|---|---|---|---|\n";
  auto const milliseconds = [](double seconds) {
    return seconds > 0 ? report::number("%.2f", 1e3 * seconds) + " ms" : std::string("-");
  };
  for (OnceRun const& run : runs) {
    text += "| " + run.method + (run.plan.empty() ? "" : " " + std::filesystem::path(run.plan).filename().string());
    text += " | " + (run.size > 0 ? std::to_string(run.size) : std::string("all"));
    text += " | " + report::number("%.1f", run.mean_kept);
    text += " | " + plus_minus("%.2f", run.perplexity, run.perplexity_error);
    text += " | " + plus_minus("%.2f", run.closed.share, run.closed.standard_error);
    text += " | " + plus_minus("%.3f", run.copy_nll, run.copy_nll_error);
    text += " | " + plus_minus("%.2f", run.lookup, run.lookup_error);
    text += " | " + milliseconds(run.select_seconds) + " | " + milliseconds(run.compress_seconds) + " |\n";
  }
  text += "\nBeside a prefill of " + report::number("%.2f", cost.prefill_seconds) +
          " s: score_keys of the last queries " + beside_prefill(cost.last_queries_seconds, cost.prefill_seconds) +
          ", of all queries " + beside_prefill(cost.all_queries_seconds, cost.prefill_seconds);
  if (std::isfinite(cost.learned_seconds)) {
    text += ", score_rows " + beside_prefill(cost.learned_seconds, cost.prefill_seconds);
  }
  double slowest = 0;
  for (OnceRun const& run : runs) {
    if (run.select_seconds > slowest) slowest = run.select_seconds;
  }
  if (slowest > 0) text += ", select_tokens at most " + beside_prefill(slowest, cost.prefill_seconds);
  return text + "\n";
}

void write_pieces(std::filesystem::path const& folder, std::span<OncePiece const> pieces) {
  constexpr std::array<char const*, 3> kinds{"passage", "copy", "lookup"};
  auto list = nlohmann::ordered_json::array();
  for (OncePiece const& piece : pieces) {
    list.push_back({{"kind", kinds.at(static_cast<std::size_t>(piece.kind))},
                    {"prefix", piece.prefix},
                    {"continuation", piece.continuation},
                    {"counted", piece.counted}});
  }
  support::make_folder(folder);
  ha::write_file(folder / "evict_once_pieces.json", list.dump() + "\n");
}

void write_once(std::filesystem::path const& folder, OnceAbout const& about, OnceOptions const& options,
                OncePlace const& place, std::vector<OnceRun> const& runs, OnceCost const& cost) {
  nlohmann::ordered_json document = {{"model", about.model},
                                     {"text", about.text},
                                     {"exact", about.exact},
                                     {"element_bytes", options.single_precision ? 4 : 2},
                                     {"threads", options.threads},
                                     {"prefix", options.prefix},
                                     {"continuation", options.continuation},
                                     {"passages", place.passages},
                                     {"copies", place.copies},
                                     {"lookups", place.lookups},
                                     {"questions", place.questions},
                                     {"prefill_seconds", finite_or_null(cost.prefill_seconds)},
                                     {"score_last_queries_seconds", finite_or_null(cost.last_queries_seconds)},
                                     {"score_all_queries_seconds", finite_or_null(cost.all_queries_seconds)},
                                     {"score_rows_seconds", finite_or_null(cost.learned_seconds)}};
  auto& list = document["runs"] = nlohmann::ordered_json::array();
  for (OnceRun const& run : runs) list.push_back(json_of(run));
  support::make_folder(folder);
  ha::write_file(folder / "evict_once.csv", csv_of(list));
  for (std::size_t i = 0; i < runs.size(); ++i) {
    list[i]["passage_nll"] = runs[i].passage_nll;
    list[i]["copy_nlls"] = runs[i].copy_nlls;
    list[i]["lookups"] = runs[i].lookups;
  }
  support::write_json(folder / "evict_once.json", document);
  write_once_pictures(folder / "pictures", about, options, runs);
}

}  // namespace llama_adapter
