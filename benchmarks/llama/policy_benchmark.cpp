#include "llama/policy_benchmark.hpp"

#include "llama/run_values.hpp"
#include "tools/report/gallery.hpp"
#include "tools/report/size_curves.hpp"
#include "tools/report/style.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/json_text.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/policy_plan.hpp>
#include <headaware/policy/scored_heads.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Fills in what a run predicts. @param losses  of each piece of the text
void score(EvaluationText const& text, std::span<std::vector<double> const> losses, BenchmarkRun& run) {
  auto const of = text.split(losses);
  run.tokens = std::ssize(of.passages);
  run.perplexity = std::exp(mean_loss(of.passages));
  run.perplexity_second_half = std::exp(mean_loss(of.second_halves));
  run.copy_nll = mean_loss(of.copies);
  run.passage_nll = of.second_half_means;
  run.copy_nlls = of.copy_means;
  run.perplexity_second_half_error = run.perplexity_second_half * standard_error_of(run.passage_nll);
  run.copy_nll_error = standard_error_of(run.copy_nlls);
}

/// Sizes of a run's cache after `context` tokens.
void account(ha::ModelShape const& shape, std::int64_t context, BenchmarkRun& run) {
  if (run.engine) {
    run.mean_kept_tokens = static_cast<double>(context);
    run.kv_bytes_end = engine_kv_bytes(shape, *run.engine, context);
    return;
  }
  ha::PolicyTable const table = ha::within_layers(run.table, shape);
  run.mean_kept_tokens =
      static_cast<double>(ha::held_tokens(table, context)) / static_cast<double>(table.heads().total());
  run.record_bytes_end = ha::record_bytes(table);
  if (run.formats.num_layers() > 0) {
    run.kv_bytes_end = ha::held_bytes(table, run.formats, shape, context) + run.record_bytes_end;
    return;
  }
  run.kv_bytes_end = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    std::int64_t const token = shape.layer(layer).token_bytes(sizeof(ha::float16)).total();
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      run.kv_bytes_end += ha::held_tokens(table.at(layer, head), context) * token;
    }
  }
}

/// Fills in what runs hold of the full cache in 16 bits.
void measure_shares(ha::ModelShape const& shape, std::int64_t context, std::vector<BenchmarkRun>& runs) {
  BenchmarkRun full{.method = "full", .table = ha::PolicyTable(shape, ha::Full{})};
  account(shape, context, full);
  for (BenchmarkRun& run : runs) {
    run.kv_share = static_cast<double>(run.kv_bytes_end) / static_cast<double>(full.kv_bytes_end);
  }
}

/// Fills in the times of a run. @param texts  of each piece
void time(std::span<EvictedText const> texts, std::span<std::vector<std::int32_t> const> pieces,
          std::int64_t decode_tokens, BenchmarkRun& run) {
  double seconds = 0;
  std::int64_t tokens = 0;
  std::int64_t peak = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    seconds += texts[i].read_seconds;
    tokens += std::ssize(pieces[i]);
    peak = std::max(peak, texts[i].kv_bytes_peak);
  }
  run.kv_bytes_peak = peak;
  run.prefill_tokens_per_s = static_cast<double>(tokens) / seconds;
  run.time_to_first_token_s = texts.front().first_token_seconds;
  if (decode_tokens > 0) run.decode_tokens_per_s = static_cast<double>(decode_tokens) / texts.front().decode_seconds;
}

nlohmann::ordered_json json_of(BenchmarkRun const& run) {
  return {{"method", run.method},
          {"budget_tokens", run.budget_tokens},
          {"mean_kept_tokens", run.mean_kept_tokens},
          {"kv_share", finite_or_null(run.kv_share)},
          {"tokens", run.tokens},
          {"perplexity", finite_or_null(run.perplexity)},
          {"perplexity_second_half", finite_or_null(run.perplexity_second_half)},
          {"perplexity_second_half_error", finite_or_null(run.perplexity_second_half_error)},
          {"copy_nll", finite_or_null(run.copy_nll)},
          {"copy_nll_error", finite_or_null(run.copy_nll_error)},
          {"gap_closed", finite_or_null(run.closed.share)},
          {"gap_closed_error", finite_or_null(run.closed.standard_error)},
          {"kv_bytes_peak", run.kv_bytes_peak ? nlohmann::ordered_json(*run.kv_bytes_peak) : nlohmann::ordered_json()},
          {"kv_bytes_end", run.kv_bytes_end},
          {"record_bytes_end", run.record_bytes_end},
          {"prefill_tokens_per_s", finite_or_null(run.prefill_tokens_per_s)},
          {"decode_tokens_per_s", finite_or_null(run.decode_tokens_per_s)},
          {"time_to_first_token_s", finite_or_null(run.time_to_first_token_s)},
          {"compaction_s", finite_or_null(run.compaction_s)},
          {"plan", run.plan}};
}

std::string shown(char const* format, double value) {
  return std::isfinite(value) ? report::number(format, value) : std::string("-");
}

/// "18.22+-0.31": a mean and its standard error over passages.
std::string with_error(char const* format, double value, double error) {
  return shown(format, value) + (std::isfinite(error) ? "+-" + report::number(format, error) : std::string());
}

/// "1 passage", "2 passages".
std::string counted(std::size_t count, std::string const& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

constexpr char const* picture_names[] = {"perplexity", "copying"};

/// One line per method.
report::SizePicture picture_of(std::vector<BenchmarkRun> const& runs, double BenchmarkRun::*figure) {
  constexpr std::pair<char const*, char const*> known[] = {
      {"streaming_llm", "#0072B2"}, {"window_only", "#E69F00"}, {"head_aware", "#D55E00"},
      {"duo", "#CC79A7"},           {"planned", "#009E73"},     {"planned_by_bytes", "#000000"},
      {"engine_q8_0", "#8C564B"},   {"engine_q4_0", "#7F7F7F"}, {"planned_scored", "#117733"}};
  constexpr char const* others[] = {"#56B4E9", "#332288", "#999933", "#882255"};
  report::SizePicture picture;
  for (auto const& [method, color] : known) picture.curves.push_back({method, color, {}});
  for (BenchmarkRun const& run : runs) {
    if (run.method == "full") {
      if (std::isfinite(run.*figure)) picture.full = run.*figure;
      continue;
    }
    auto curve = std::find_if(picture.curves.begin(), picture.curves.end(),
                              [&](report::SizeCurve const& one) { return one.name == run.method; });
    if (curve == picture.curves.end()) {
      picture.curves.push_back({run.method, others[picture.curves.size() % std::size(others)], {}});
      curve = picture.curves.end() - 1;
    }
    curve->points.push_back({100 * run.kv_share, run.*figure});
    if (run.kv_share > 0) picture.full_mib = static_cast<double>(run.kv_bytes_end) / run.kv_share / 1048576;
  }
  return picture;
}

void write_pictures(std::filesystem::path const& folder, BenchmarkAbout const& about, BenchmarkText const& text,
                    std::vector<BenchmarkRun> const& runs) {
  report::Gallery gallery;
  report::SizePicture perplexity = picture_of(runs, &BenchmarkRun::perplexity_second_half);
  perplexity.name = picture_names[0];
  perplexity.title = "Perplexity over the memory of the KV cache";
  perplexity.subtitle = about.title() + ", " + counted(text.place.passages.size(), "passage") + " of " +
                        std::to_string(text.place.context) + " tokens";
  perplexity.figure = "perplexity of the second halves";
  perplexity.reading = "The lower, the better a model predicts text with a cache of this size.";
  add_size_picture(perplexity, gallery);
  report::SizePicture copying = picture_of(runs, &BenchmarkRun::copy_nll);
  copying.name = picture_names[1];
  copying.title = "Copying over the memory of the KV cache";
  copying.subtitle = about.title() + ", " + counted(text.place.copies.size(), "passage") + " of " +
                     std::to_string(text.place.context / 2) + " tokens, given twice";
  copying.figure = "NLL of the second copy (nats per token)";
  copying.reading = "The lower, the better a model finds again what it has read.";
  copying.from_zero = true;
  add_size_picture(copying, gallery);
  (void)report::write_pictures(folder, gallery, picture_names);
}

}  // namespace

void run_benchmark(LossStore& losses, std::span<std::int32_t const> tokens, BenchmarkText const& text,
                   std::vector<BenchmarkRun>& runs) {
  Model const& model = losses.run().model();
  EvaluationText const evaluated(model, tokens, text.place, "run_benchmark");
  auto const pieces = evaluated.pieces();
  std::vector<LossJob> jobs;
  for (BenchmarkRun const& run : runs) {
    ha::require(!run.engine, "method", "one of tables: the engine's own cache is no mask (leave --masked out)",
                run.method, "run_benchmark");
    for (auto const& piece : pieces) jobs.push_back({piece, run.table, {.formats = run.formats}});
  }
  auto const all = losses.losses("benchmark", jobs);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    score(evaluated, std::span(all).subspan(i * pieces.size(), pieces.size()), runs[i]);
    account(model.shape(), text.place.context, runs[i]);
  }
  measure_shares(model.shape(), text.place.context, runs);
  measure_gaps(runs);
}

void run_benchmark(EvictedStore& evicted, std::span<std::int32_t const> tokens, BenchmarkText const& text,
                   std::vector<BenchmarkRun>& runs) {
  Model const& model = evicted.model();
  EvaluationText const evaluated(model, tokens, text.place, "run_benchmark");
  auto const pieces = evaluated.pieces();
  ha::require(!pieces.empty(), "passages", "at least one", "none", "run_benchmark");
  std::vector<EvictedJob> jobs;
  for (BenchmarkRun const& run : runs) {
    for (std::size_t i = 0; i < pieces.size(); ++i)
      jobs.push_back(
          {pieces[i], run.table, run.formats, run.engine, i == 0 ? text.decode_tokens : 0, run.scorer.get()});
  }
  auto const all = evicted.run("benchmark", jobs);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    auto const texts = std::span(all).subspan(i * pieces.size(), pieces.size());
    std::vector<std::vector<double>> losses;
    for (EvictedText const& one : texts) losses.push_back(one.losses);
    score(evaluated, losses, runs[i]);
    account(model.shape(), text.place.context, runs[i]);
    time(texts, pieces, text.decode_tokens, runs[i]);
    // A cache with scored slots is filled by appending: `compress` knows no scores of a full cache's rows.
    if (runs[i].engine || ha::has_scored_heads(runs[i].table)) continue;
    runs[i].compaction_s = evicted.compaction_seconds(runs[i].table, runs[i].formats, text.place.context);
  }
  measure_shares(model.shape(), text.place.context, runs);
  measure_gaps(runs);
}

BenchmarkRun const* uniform_beside(std::vector<BenchmarkRun> const& runs, BenchmarkRun const& run) {
  auto const found = std::find_if(runs.begin(), runs.end(), [&](BenchmarkRun const& other) {
    auto const held = static_cast<double>(run.kv_bytes_end);
    double const token = static_cast<double>(other.kv_bytes_end) / std::max(1.0, other.mean_kept_tokens);
    return other.method == "streaming_llm" &&
           std::abs(static_cast<double>(other.kv_bytes_end) - held) <= token + 0.01 * held;
  });
  return found == runs.end() ? nullptr : &*found;
}

void measure_gaps(std::vector<BenchmarkRun>& runs) {
  auto const full =
      std::find_if(runs.begin(), runs.end(), [](BenchmarkRun const& run) { return run.method == "full"; });
  if (full == runs.end()) return;
  for (BenchmarkRun& run : runs) {
    BenchmarkRun const* const uniform = uniform_beside(runs, run);
    if (uniform == nullptr || run.method == "full" || run.method == "streaming_llm") continue;
    run.closed = gap_closed(full->passage_nll, uniform->passage_nll, run.passage_nll);
  }
}

std::string benchmark_table(std::vector<BenchmarkRun> const& runs) {
  bool const timed =
      std::any_of(runs.begin(), runs.end(), [](auto const& run) { return run.kv_bytes_peak.has_value(); });
  std::string text =
      "method                     budget mean kept  of 16 bits perplexity   second half      copy NLL gap closed";
  text += timed ? "  peak MiB prefill/s decode/s first token compaction  plan\n" : "  plan\n";
  char line[256];
  for (BenchmarkRun const& run : runs) {
    std::snprintf(line, sizeof(line), "%-25s %7lld %9.1f %10.2f%% %10.3f %13s %13s %10s", run.method.c_str(),
                  static_cast<long long>(run.budget_tokens), run.mean_kept_tokens, 100 * run.kv_share, run.perplexity,
                  with_error("%.2f", run.perplexity_second_half, run.perplexity_second_half_error).c_str(),
                  with_error("%.3f", run.copy_nll, run.copy_nll_error).c_str(),
                  with_error("%.2f", run.closed.share, run.closed.standard_error).c_str());
    text += line;
    if (timed) {
      std::snprintf(line, sizeof(line), "  %8.2f %9.1f %8s %9.2f s %7s ms",
                    static_cast<double>(run.kv_bytes_peak.value_or(0)) / 1048576, run.prefill_tokens_per_s,
                    shown("%.1f", run.decode_tokens_per_s).c_str(), run.time_to_first_token_s,
                    shown("%.2f", 1e3 * run.compaction_s).c_str());
      text += line;
    }
    text += "  " + run.plan + "\n";
  }
  return text;
}

void write_benchmark(std::filesystem::path const& folder, BenchmarkAbout const& about, BenchmarkText const& text,
                     std::vector<BenchmarkRun> const& runs) {
  nlohmann::ordered_json document = {
      {"about", about.title()},     {"model", about.model},          {"text", about.text},
      {"masked", about.masked},     {"exact", about.exact},          {"element_bytes", about.element_bytes},
      {"threads", about.threads},   {"context", text.place.context}, {"passages", text.place.passages},
      {"copies", text.place.copies}};
  if (!about.masked) {
    document["chunk_tokens"] = about.chunk;
    document["decode_tokens"] = text.decode_tokens;
  }
  auto& list = document["runs"] = nlohmann::ordered_json::array();
  for (BenchmarkRun const& run : runs) list.push_back(json_of(run));
  support::make_folder(folder);
  ha::write_file(folder / "benchmark.csv", csv_of(list));
  for (std::size_t i = 0; i < runs.size(); ++i) {
    list[i]["passage_nll"] = runs[i].passage_nll;
    list[i]["copy_nlls"] = runs[i].copy_nlls;
  }
  support::write_json(folder / "benchmark.json", document);
  write_pictures(folder / "pictures", about, text, runs);
}

}  // namespace llama_adapter
