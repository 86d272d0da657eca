#include "llama/ablation.hpp"

#include "llama/ablation_calibration.hpp"
#include "llama/ablation_tables.hpp"
#include "tools/support/budget.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/progress.hpp"

#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Every piece of a text with what heads keep.
std::vector<LossJob> jobs_of(EvaluationText const& text, KeptHeads const& kept, AblationPrecision const& precision) {
  Rounding const rounding{
      .formats = kept.formats,
      .rotated = precision.rotated,
      .exact = {.sink = precision.exact > 0 ? precision.exact_sinks : 0, .window = precision.exact}};
  std::vector<LossJob> jobs;
  for (auto const& piece : text.pieces()) jobs.push_back({piece, kept.table, rounding});
  return jobs;
}

/// @param losses  of each piece of the text
void score(EvaluationText const& text, std::span<std::vector<double> const> losses, AblationResult& result) {
  auto of = text.split(losses);
  result.perplexity = std::exp(mean_loss(of.passages));
  result.perplexity_second_half = std::exp(mean_loss(of.second_halves));
  result.copy_nll = mean_loss(of.copies);
  result.losses = std::move(of.second_halves);
  result.copy_losses = std::move(of.copies);
}

/// A text as tokens, and its parts to calibrate and to evaluate on.
struct SplitText {
  std::vector<std::int32_t> tokens;
  std::int64_t calibration = 0;  ///< as many from the first one on; the rest is for evaluation

  static SplitText of(Model const& model, std::filesystem::path const& path, bool split) {
    SplitText text{model.tokenize(ha::read_text_file(path), false)};
    text.calibration = split ? std::ssize(text.tokens) * 3 / 4 : std::ssize(text.tokens);
    return text;
  }
  [[nodiscard]] std::span<std::int32_t const> to_calibrate() const {
    return std::span(tokens).first(static_cast<std::size_t>(calibration));
  }
  [[nodiscard]] std::span<std::int32_t const> to_evaluate() const {
    return std::span(tokens).subspan(static_cast<std::size_t>(calibration));
  }
};

/// Runs under tables, with keys at either kind of position.
class Runs {
 public:
  Runs(Model const& model, AblationOptions const& options)
      : model_(&model),
        options_(&options),
        run_(model, run_options(KeyPositions::text)),
        store_(run_, options.output_dir / "losses") {}

  [[nodiscard]] LossStore& at_text() { return store_; }
  [[nodiscard]] LossStore& at(KeyPositions positions) {
    if (positions == KeyPositions::text) return store_;
    if (!cache_store_) {
      cache_run_ = std::make_unique<PolicyRun>(*model_, run_options(KeyPositions::cache));
      cache_store_ = std::make_unique<LossStore>(*cache_run_, options_->output_dir / "losses");
    }
    return *cache_store_;
  }

 private:
  [[nodiscard]] PolicyRunOptions run_options(KeyPositions positions) const {
    return {
        .tokens = static_cast<std::int32_t>(options_->context), .threads = options_->threads, .positions = positions};
  }
  Model const* model_;
  AblationOptions const* options_;
  PolicyRun run_;
  LossStore store_;
  std::unique_ptr<PolicyRun> cache_run_;
  std::unique_ptr<LossStore> cache_store_;
};

/// Says what remains, from how fast tokens have been so far.
class Remaining {
 public:
  explicit Remaining(double tokens_per_second) : rate_(tokens_per_second) {}

  void begin(std::int64_t tokens) { left_ = tokens; }
  void done(std::int64_t tokens, double seconds) {
    left_ -= tokens;
    tokens_ += static_cast<double>(tokens);
    seconds_ += seconds;
    if (seconds_ > 5) rate_ = tokens_ / seconds_;
  }
  [[nodiscard]] std::string text() const { return support::duration(static_cast<double>(left_) / rate_); }

 private:
  double rate_;
  double tokens_ = 0;
  double seconds_ = 0;
  std::int64_t left_ = 0;
};

/// Measures one pass with everything kept. @return tokens a second
double measure_rate(LossStore& losses, LossJob const& job) {
  auto const start = Clock::now();
  (void)losses.run().losses(job.tokens, job.table);
  return static_cast<double>(job.tokens.size()) / seconds_since(start);
}

std::vector<AblationSetup> setups_of(std::vector<AblationGroup> const& groups) {
  std::vector<AblationSetup> setups;
  for (auto const& group : groups) {
    for (auto const& variant : group.variants) setups.push_back(variant.setup);
  }
  return setups;
}

/// Counts the configurations that differ.
std::int64_t distinct(std::vector<AblationSetup> const& setups) {
  std::int64_t count = 0;
  for (auto i = setups.begin(); i != setups.end(); ++i) count += std::find(setups.begin(), i, *i) == i ? 1 : 0;
  return count;
}

/// A configuration and what heads keep in it, or why there is none.
struct Prepared {
  AblationResult result;
  KeptHeads kept;

  [[nodiscard]] std::vector<LossJob> jobs(EvaluationText const& text) const {
    return jobs_of(text, kept, result.setup.precision);
  }
};

std::vector<Prepared> prepare(AblationTables const& tables, std::vector<AblationGroup> const& groups,
                              ha::ModelShape const& shape, std::int64_t context) {
  std::vector<Prepared> all;
  for (auto const& group : groups) {
    for (auto const& variant : group.variants) {
      Prepared prepared{{.group = group.name, .name = variant.name, .setup = variant.setup},
                        {ha::PolicyTable(shape, ha::Full{})}};
      try {
        prepared.kept = tables.of(variant.setup);
        ha::PolicyTable const& table = prepared.kept.table;
        prepared.result.mean_kept_tokens =
            static_cast<double>(ha::held_tokens(table, context)) / static_cast<double>(table.heads().total());
        prepared.result.kv_share = tables.held_share(prepared.kept, variant.setup.precision);
      } catch (ha::ArgumentError const& error) {
        prepared.result.left_out = error.what();
      }
      all.push_back(std::move(prepared));
    }
  }
  return all;
}

}  // namespace

double AblationResult::score() const { return std::log(perplexity_second_half) + ablation_copy_weight * copy_nll; }

EvaluationPlace ablation_place(std::int64_t length, std::int64_t context, std::int64_t max_tokens,
                               std::string const& where) {
  ha::require(context >= 256 && context % 2 == 0, "--context", "an even number of at least 256 tokens", context,
              "run_ablation_study");
  std::int64_t const least = context + context / 2;
  ha::require(max_tokens >= least, "--max_tokens",
              {"at least ", least, ", a passage of --context and a copied one of half of it"}, max_tokens,
              "run_ablation_study");
  ha::require(length >= least, "tokens of the evaluation text", {"at least ", least, " (--context is ", context, ")"},
              length, where);
  std::int64_t const tokens = std::min(length, max_tokens);
  // A passage, and as much again of a quarter of it to copy.
  std::int64_t const passages = std::max<std::int64_t>(1, tokens * 4 / (5 * context));
  std::int64_t const copies = (tokens - passages * context) / (context / 2);
  EvaluationPlace place{.context = context};
  std::int64_t const parts = passages + copies;
  std::int64_t next_copy = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    // Evenly over the whole text, copies between passages.
    std::int64_t const first = (length - context) * part / std::max<std::int64_t>(parts - 1, 1);
    bool const copy = next_copy < copies && (part + 1) * copies >= (next_copy + 1) * parts;
    if (copy) {
      place.copies.push_back(first);
      ++next_copy;
    } else {
      place.passages.push_back(first);
    }
  }
  return place;
}

AblationScale ablation_scale(AblationOptions const& options, ha::ModelShape const& shape) {
  ha::Budget const budget = support::parse_budget(options.budget, {shape, 2});
  support::PlannedCache const cache(shape, {}, options.context);
  std::int64_t const tokens = cache.budget(budget, options.context) / cache.heads;
  ha::require(tokens >= 16 && tokens < options.context, "--budget",
              {"at least 16 tokens per KV head and less than --context, ", options.context}, tokens,
              "run_ablation_study");
  ha::require(options.pieces > 0, "--pieces", "> 0", options.pieces, "run_ablation_study");
  return {.context = options.context,
          .budget_tokens = tokens,
          .pieces = options.pieces,
          .layers = shape.num_layers(),
          .other_text = !options.other_text.empty(),
          .sensitivity = options.sensitivity};
}

AblationStudy run_ablation(AblationOptions const& options) {
  auto const start = Clock::now();
  Model const model(options.model);
  AblationStudy study{.shape = model.shape(), .options = options};
  AblationScale const scale = ablation_scale(options, study.shape);
  study.budget_tokens = scale.budget_tokens;
  study.groups = choose_groups(ablation_groups(scale), options.groups);
  study.groups.insert(study.groups.begin(), reference_group(scale));
  auto const setups = setups_of(study.groups);

  bool const own_evaluation = options.eval_text.empty();
  auto const text = SplitText::of(model, options.text, own_evaluation);
  SplitText eval;
  if (!own_evaluation) eval = {model.tokenize(ha::read_text_file(options.eval_text), false)};
  SplitText other;
  bool const wants_other = std::any_of(setups.begin(), setups.end(), [](AblationSetup const& s) {
    return s.on_other_text || s.calibration.domain != AblationDomain::own;
  });
  if (wants_other) other = SplitText::of(model, options.other_text, true);
  auto const evaluated = own_evaluation ? text.to_evaluate() : eval.to_evaluate();
  study.place = ablation_place(std::ssize(evaluated), options.context, options.max_tokens,
                               (own_evaluation ? options.text : options.eval_text).string());
  EvaluationText const on_own(model, evaluated, study.place, "run_ablation");
  std::unique_ptr<EvaluationText> on_other;
  if (wants_other) {
    auto const tokens = other.to_evaluate();
    on_other = std::make_unique<EvaluationText>(
        model, tokens,
        ablation_place(std::ssize(tokens), options.context, options.max_tokens, options.other_text.string()),
        "run_ablation");
  }

  support::make_folder(options.output_dir);
  Runs runs(model, options);
  AblationCalibration calibration(runs.at_text(),
                                  {.own = {text.to_calibrate(), options.text.string()},
                                   .other = {other.to_calibrate(), options.other_text.string()},
                                   .context = options.context,
                                   .pieces = options.pieces,
                                   .threads = options.threads,
                                   .folder = options.output_dir / "calibration"},
                                  setups);
  auto const full = jobs_of(on_own, {ha::PolicyTable(study.shape, ha::Full{})}, {});
  double rate = 0;
  if (std::int64_t const tokens = calibration.tokens_to_run(); tokens > 0) {
    rate = measure_rate(runs.at_text(), full.front());
    std::int64_t each = 0;
    for (auto const& job : full) each += std::ssize(job.tokens);
    std::int64_t const evaluation = distinct(setups) * each;
    std::fprintf(stderr,
                 "about %s: %lld tokens to calibrate, and at most %lld to try %lld configurations, at %.0f tokens/s "
                 "(one pass, measured)\n",
                 support::duration(static_cast<double>(tokens + evaluation) / rate).c_str(),
                 static_cast<long long>(tokens), static_cast<long long>(evaluation),
                 static_cast<long long>(distinct(setups)), rate);
    study.tokens_run += tokens;
  }
  calibration.measure();
  study.classes = calibration.classes();

  AblationTables const tables(calibration, study.shape, options.context, scale.budget_tokens);
  for (AblationSetup const& setup : setups) {
    if (setup.replan_step <= 0) continue;
    auto const first = AblationTables::first_of(setup);
    calibration.measure_at_plan(first, tables.of(first).table);
  }
  for (AblationSetup const& setup : setups) {
    if (setup.refine_levels > 0) calibration.refine(setup, tables.input_of(setup));
  }
  auto prepared = prepare(tables, study.groups, study.shape, options.context);
  auto const text_of_one = [&](Prepared const& one) -> EvaluationText const& {
    return one.result.setup.on_other_text ? *on_other : on_own;
  };
  std::int64_t left = 0;
  for (auto const positions : {KeyPositions::text, KeyPositions::cache}) {
    std::vector<LossJob> jobs;
    for (auto const& one : prepared) {
      if (!one.result.ran() || one.result.setup.positions != positions) continue;
      auto const own = one.jobs(text_of_one(one));
      jobs.insert(jobs.end(), own.begin(), own.end());
    }
    if (!jobs.empty()) left += runs.at(positions).tokens_to_run(jobs);
  }
  if (left > 0 && rate == 0) rate = measure_rate(runs.at_text(), full.front());
  Remaining remaining(rate);
  remaining.begin(left);
  if (left > 0) {
    std::fprintf(stderr, "about %s to try configurations: %lld tokens\n", remaining.text().c_str(),
                 static_cast<long long>(left));
  }
  study.tokens_run += left;
  std::size_t number = 0;
  for (Prepared& one : prepared) {
    ++number;
    AblationResult& result = one.result;
    if (result.ran()) {
      LossStore& store = runs.at(result.setup.positions);
      auto const jobs = one.jobs(text_of_one(one));
      std::int64_t const tokens = store.tokens_to_run(jobs);
      auto const began = Clock::now();
      auto const losses = store.losses(std::to_string(number) + "/" + std::to_string(prepared.size()) + " " +
                                           result.group + "/" + result.name + ", " + remaining.text() + " left in all",
                                       jobs);
      result.seconds = tokens > 0 ? seconds_since(began) : 0;
      remaining.done(tokens, result.seconds);
      score(text_of_one(one), losses, result);
    }
    study.results.push_back(std::move(result));
  }
  study.seconds = seconds_since(start);
  return study;
}

AblationDifference difference(AblationResult const& a, AblationResult const& b) {
  AblationDifference result;
  double variance = 0;
  auto const add = [&](std::vector<double> const& of_a, std::vector<double> const& of_b, double weight) {
    ha::require(of_a.size() == of_b.size() && of_a.size() > 1, "losses to compare", of_a.size(), of_b.size(),
                "difference");
    std::vector<double> differences(of_a.size());
    for (std::size_t i = 0; i < of_a.size(); ++i) differences[i] = of_b[i] - of_a[i];
    double const average = mean_loss(differences);
    double squares = 0;
    for (double const d : differences) squares += (d - average) * (d - average);
    auto const count = static_cast<double>(differences.size());
    result.score += weight * average;
    variance += weight * weight * squares / (count - 1) / count;
  };
  add(a.losses, b.losses, 1);
  add(a.copy_losses, b.copy_losses, ablation_copy_weight);
  result.error = std::sqrt(variance);
  return result;
}

}  // namespace llama_adapter
