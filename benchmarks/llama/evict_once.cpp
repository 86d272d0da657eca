#include "llama/evict_once.hpp"

#include "llama/evict_once_reader.hpp"
#include "llama/timing.hpp"
#include "tools/llama/loss_store.hpp"
#include "tools/llama/saved_losses.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/interrupt.hpp"
#include "tools/support/json_text.hpp"
#include "tools/support/progress.hpp"

#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/json_tree.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

namespace llama_adapter {

namespace ha = headaware;

namespace {

void save_once(std::filesystem::path const& path, OnceText const& text) {
  nlohmann::ordered_json const json = {{"mean_kept", text.mean_kept},
                                       {"select_seconds", text.select_seconds},
                                       {"compress_seconds", text.compress_seconds},
                                       {"right", text.right},
                                       {"losses", text.losses}};
  ha::write_file(path, support::json_text(json) + "\n");
}

/// Names a job's file by what goes into it.
std::filesystem::path path_of(std::string const& about, OnceOptions const& options, std::filesystem::path const& folder,
                              OnceRun const& run, OncePiece const& piece) {
  ha::ContentHash hash;
  auto const selection = OnceSelection::of(run);
  hash.add(about + " " + std::to_string(run.size) + " " + selection.text());
  if (selection.source == OnceSource::windows) hash.add(text_of(run.table));
  if (selection.source == OnceSource::second_reading) hash.add(repeat_instruction);
  if (selection.source == OnceSource::learned) hash.add(options.scorer->saved.weight_hash);
  hash.add(run.budgets);
  hash.add(piece.prefix);
  hash.add(piece.continuation);
  return folder / (hash.text() + ".json");
}

std::string about_of(Model const& model, OnceOptions const& options) {
  return identity_of(model) + " once " + (options.single_precision ? "4" : "2") + " " + std::to_string(options.threads);
}

template <class T>
void run_missing(Model const& model, OnceOptions const& options, std::filesystem::path const& folder,
                 std::span<OncePiece const> pieces, std::vector<OnceRun> const& runs) {
  std::string const about = about_of(model, options);
  std::int64_t total = 0;
  std::int64_t done = 0;
  std::int64_t most = 0;
  std::size_t known = 0;
  auto const missing = [&](OncePiece const& piece) {
    std::vector<OnceRun const*> result;
    for (OnceRun const& run : runs) {
      if (!std::filesystem::exists(path_of(about, options, folder, run, piece))) result.push_back(&run);
    }
    return result;
  };
  auto const sources_of = [](std::vector<OnceRun const*> const& of) {
    std::vector<OnceSource> sources;
    for (OnceRun const* const run : of) sources.push_back(OnceSelection::of(*run).source);
    return sources;
  };
  auto const prefix_tokens = [&](OncePiece const& piece, std::vector<OnceSource> const& sources) {
    std::int64_t tokens = std::ssize(piece.prefix);
    bool const twice = std::count(sources.begin(), sources.end(), OnceSource::second_reading) > 0;
    if (twice) tokens += std::ssize(OnceReader<T>::second_reading(model, piece.prefix));
    return tokens;
  };
  for (OncePiece const& piece : pieces) {
    auto const left = missing(piece);
    known += runs.size() - left.size();
    if (left.empty()) continue;
    std::int64_t const prefix = prefix_tokens(piece, sources_of(left));
    most = std::max(most, prefix);
    total += prefix + std::ssize(left) * std::ssize(piece.continuation);
  }
  if (known > 0) {
    std::fprintf(stderr, "%zu of %zu continuations were read in an earlier run (remove %s to measure anew)\n", known,
                 pieces.size() * runs.size(), folder.c_str());
  }
  if (total == 0) return;
  support::Interrupt const interrupt;
  support::Progress progress("evict once", "tokens", total, 0);
  OnceReader<T> reader(model, options, most, [&] { interrupt.check(); });
  for (OncePiece const& piece : pieces) {
    auto const left = missing(piece);
    if (left.empty()) continue;
    auto const sources = sources_of(left);
    reader.read(piece.prefix, sources);
    done += prefix_tokens(piece, sources);
    for (OnceRun const* const run : left) {
      auto const text = reader.go_on(*run, piece.continuation, [&](std::int64_t tokens) {
        interrupt.check();
        progress.show(static_cast<double>(done + tokens));
      });
      save_once(path_of(about, options, folder, *run, piece), text);
      done += std::ssize(piece.continuation);
    }
  }
  progress.finish(static_cast<double>(done));
}

}  // namespace

OnceText parse_once_text(std::string_view text, std::string const& source, std::int64_t count) {
  return read_saved("measurements of an earlier run", std::to_string(count) + " losses, and seconds", source, [&] {
    ha::JsonTree const tree(text, source);
    ha::JsonObject json = tree.root().object();
    OnceText result;
    auto const list_of = [&](char const* key) {
      auto const list = json.get(key, "an array").array();
      if (static_cast<std::int64_t>(list.size()) != count) list.fail(key, std::to_string(count));
      return list;
    };
    for (auto const loss : list_of("losses")) result.losses.push_back(loss.number());
    for (auto const right : list_of("right")) result.right.push_back(right.integer<std::int32_t>(0, 1));
    auto const amount = [&](char const* key) {
      auto const value = json.get(key, "a number");
      double const number = value.number();
      if (!(number >= 0)) value.fail(key, "a number >= 0");
      return number;
    };
    result.mean_kept = amount("mean_kept");
    result.select_seconds = amount("select_seconds");
    result.compress_seconds = amount("compress_seconds");
    return result;
  });
}

void run_once(Model const& model, OnceOptions const& options, std::filesystem::path const& folder,
              std::span<OncePiece const> pieces, std::vector<OnceRun>& runs) {
  ha::require(!pieces.empty(), "pieces of text", "at least one", "none", "run_once");
  support::make_folder(folder);
  Cores const cores(options.threads);
  if (options.single_precision) {
    run_missing<float>(model, options, folder, pieces, runs);
  } else {
    run_missing<ha::float16>(model, options, folder, pieces, runs);
  }
  std::string const about = about_of(model, options);
  for (OnceRun& run : runs) {
    for (auto* const list : {&run.passage_nll, &run.copy_nlls, &run.lookups}) list->clear();
    std::array<double, 3> sums{};
    for (OncePiece const& piece : pieces) {
      auto const path = path_of(about, options, folder, run, piece);
      auto const text = parse_once_text(ha::read_text_file(path), path.string(), std::ssize(piece.continuation) - 1);
      double sum = 0;
      for (std::int64_t const at : piece.counted) {
        auto const i = static_cast<std::size_t>(at);
        sum += piece.kind == OnceKind::lookup ? text.right[i] : text.losses[i];
      }
      auto& list = piece.kind == OnceKind::passage ? run.passage_nll
                   : piece.kind == OnceKind::copy  ? run.copy_nlls
                                                   : run.lookups;
      list.push_back(sum / static_cast<double>(piece.counted.size()));
      sums[0] += text.mean_kept, sums[1] += text.select_seconds, sums[2] += text.compress_seconds;
    }
    auto const count = static_cast<double>(pieces.size());
    run.mean_kept = sums[0] / count, run.select_seconds = sums[1] / count, run.compress_seconds = sums[2] / count;
    run.perplexity = std::exp(mean_loss(run.passage_nll));
    run.perplexity_error = run.perplexity * standard_error_of(run.passage_nll);
    run.copy_nll = mean_loss(run.copy_nlls);
    run.copy_nll_error = standard_error_of(run.copy_nlls);
    run.lookup = mean_loss(run.lookups);
    run.lookup_error = standard_error_of(run.lookups);
  }
  auto const full = std::find_if(runs.begin(), runs.end(), [](OnceRun const& run) { return run.method == "full"; });
  if (full == runs.end()) return;
  for (OnceRun& run : runs) {
    auto const uniform = std::find_if(runs.begin(), runs.end(), [&](OnceRun const& other) {
      return other.method == "streaming_llm" && other.size == run.size;
    });
    if (uniform == runs.end() || &run == &*uniform) continue;
    run.closed = gap_closed(full->passage_nll, uniform->passage_nll, run.passage_nll);
  }
}

OnceCost once_cost(Model const& model, OnceOptions const& options, std::filesystem::path const& folder,
                   std::span<std::int32_t const> prefix) {
  support::make_folder(folder);
  Cores const cores(options.threads);
  ha::ContentHash hash;
  hash.add(about_of(model, options) + " cost");
  hash.add(prefix);
  if (options.scorer != nullptr) hash.add(options.scorer->saved.weight_hash);
  auto const path = folder / (hash.text() + ".json");
  constexpr std::array<char const*, 4> names{"prefill_seconds", "last_queries_seconds", "all_queries_seconds",
                                             "learned_seconds"};
  constexpr std::array members{&OnceCost::prefill_seconds, &OnceCost::last_queries_seconds,
                               &OnceCost::all_queries_seconds, &OnceCost::learned_seconds};
  std::size_t const measured = options.scorer != nullptr ? 4 : 3;
  OnceCost cost;
  if (std::filesystem::exists(path)) {
    std::string const saved = ha::read_text_file(path);  // which the tree borrows
    ha::JsonTree const tree(saved, path.string());
    ha::JsonObject json = tree.root().object();
    for (std::size_t i = 0; i < measured; ++i) cost.*members[i] = json.get(names[i], "a number").number();
    return cost;
  }
  support::Interrupt const interrupt;
  auto const count = static_cast<std::int32_t>(prefix.size());
  cost.prefill_seconds = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 2; ++i) {
    Context context(model, {.tokens = count,
                            .flash_attention = wants_fused(model.shape(), count),
                            .all_logits = false,
                            .threads = options.threads});
    cost.prefill_seconds = std::min(cost.prefill_seconds, seconds_of([&] { context.evaluate(prefix); }));
    interrupt.check();
  }
  std::int64_t const first = std::max<std::int64_t>(0, count - observed_queries);
  ha::ModelShape const& shape = model.shape();
  auto const rotations = once_rotations(model, options);
  std::vector<OnceScores> last(3, OnceScores(OnceSource::last_queries, shape, count, first, count));
  std::vector<OnceScores> learned(measured == 4 ? 3 : 0, OnceScores(OnceSource::learned, shape, count, 0, count));
  OnceScores all(OnceSource::all_queries, shape, count, 0, count);
  auto const best_of = [](std::vector<OnceScores> const& scorers) {
    double best = std::numeric_limits<double>::infinity();
    for (OnceScores const& scorer : scorers) best = std::min(best, scorer.seconds());
    return best;
  };
  AttentionTap tap(model, [&](TappedAttention const& attention) {
    for (auto* const scorers : {&last, &learned}) {
      for (OnceScores& scorer : *scorers) scorer.take(attention, options.scorer, rotations);
    }
    all.take(attention, options.scorer, rotations);
    interrupt.check();
  });
  Context context(model, {.tokens = count,
                          .flash_attention = wants_fused(shape, count),
                          .all_logits = false,
                          .threads = options.threads,
                          .observer = &tap});
  context.evaluate(prefix);
  cost.last_queries_seconds = best_of(last);
  cost.all_queries_seconds = all.seconds();
  if (measured == 4) cost.learned_seconds = best_of(learned);
  nlohmann::ordered_json json;
  for (std::size_t i = 0; i < measured; ++i) json[names[i]] = cost.*members[i];
  ha::write_file(path, support::json_text(json) + "\n");
  return cost;
}

}  // namespace llama_adapter
