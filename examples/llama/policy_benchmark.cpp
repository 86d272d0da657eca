#include "llama/policy_benchmark.hpp"

#include <headaware/cache/cache_plan.hpp>
#include <headaware/error.hpp>
#include <headaware/io/file.hpp>
#include <headaware/plan/policy_plan.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>

namespace llama_adapter {

namespace ha = headaware;

namespace {

void account(ModelShape const& shape, std::int64_t context, BenchmarkRun& run) {
  std::int64_t kept = 0;
  for (std::int32_t layer = 0; layer < shape.layers; ++layer) {
    for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
      kept += ha::held_tokens(run.table.at(layer, head), context);
    }
  }
  run.mean_kept_tokens = static_cast<double>(kept) / (static_cast<double>(shape.layers) * shape.kv_heads);
  run.kv_bytes_end = kept * ha::TokenBytes::of(shape.head_dim, 2).total();
}

/// Means over several passages, from one place on.
class Mean {
 public:
  void add(std::span<double const> losses, std::int64_t first) {
    for (auto i = static_cast<std::size_t>(first); i < losses.size(); ++i) sum_ += losses[i];
    count_ += std::ssize(losses) - first;
  }
  [[nodiscard]] std::int64_t count() const { return count_; }
  [[nodiscard]] double value() const {
    return count_ > 0 ? sum_ / static_cast<double>(count_) : std::numeric_limits<double>::quiet_NaN();
  }

 private:
  double sum_ = 0;
  std::int64_t count_ = 0;
};

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

}  // namespace

void run_benchmark(LossStore& losses, std::span<std::int32_t const> tokens, BenchmarkText const& text,
                   std::vector<BenchmarkRun>& runs) {
  constexpr auto where = "run_benchmark";
  Model const& model = losses.run().model();
  std::int64_t const special = model.begins_with_bos() ? 1 : 0;
  std::int64_t const count = text.context - special;
  std::vector<std::vector<std::int32_t>> passages;
  auto const add = [&](std::vector<std::int64_t> const& starts, std::int64_t length, bool twice) {
    for (std::int64_t const first : starts) {
      bool const fits = first >= 0 && first + length <= std::ssize(tokens);
      ha::detail::require(fits, "start of a passage", "in [0, " + std::to_string(std::ssize(tokens) - length) + "]",
                          first, where);
      passages.push_back(passage(model, tokens, first, length, twice));
    }
  };
  add(text.passages, count, false);
  add(text.copies, count / 2, true);
  std::vector<LossJob> jobs;
  for (BenchmarkRun const& run : runs) {
    for (auto const& tokens_of : passages) jobs.push_back({tokens_of, run.table});
  }
  auto const all = losses.losses("benchmark", jobs);
  std::size_t job = 0;
  for (BenchmarkRun& run : runs) {
    Mean whole;
    Mean second_half;
    Mean copy;
    for (std::size_t i = 0; i < text.passages.size(); ++i, ++job) {
      whole.add(all[job], 0);
      second_half.add(all[job], text.context / 2);
    }
    // The last token of the first copy predicts the first one of the second.
    for (std::size_t i = 0; i < text.copies.size(); ++i, ++job) copy.add(all[job], special + count / 2 - 1);
    account(model.shape(), text.context, run);
    run.tokens = whole.count();
    run.perplexity = std::exp(whole.value());
    run.perplexity_second_half = std::exp(second_half.value());
    run.copy_nll = copy.value();
  }
}

std::string benchmark_table(std::vector<BenchmarkRun> const& runs) {
  std::string text = "method           budget  mean kept    KV MiB  perplexity  second half   copy NLL  plan\n";
  char line[256];
  for (BenchmarkRun const& run : runs) {
    std::snprintf(line, sizeof(line), "%-14s %8lld %10.1f %9.2f %11.3f %12.3f %10.3f  %s\n", run.method.c_str(),
                  static_cast<long long>(run.budget_tokens), run.mean_kept_tokens,
                  static_cast<double>(run.kv_bytes_end) / 1048576, run.perplexity, run.perplexity_second_half,
                  run.copy_nll, run.plan.c_str());
    text += line;
  }
  return text;
}

void write_benchmark(std::filesystem::path const& folder, std::string const& about, BenchmarkText const& text,
                     std::vector<BenchmarkRun> const& runs) {
  nlohmann::ordered_json document = {{"about", about},
                                     {"masked", true},
                                     {"context", text.context},
                                     {"passages", text.passages},
                                     {"copies", text.copies}};
  auto& list = document["runs"] = nlohmann::ordered_json::array();
  std::string csv =
      "method,budget_tokens,mean_kept_tokens,tokens,perplexity,perplexity_second_half,copy_nll,kv_bytes_end,plan\n";
  char line[512];
  for (BenchmarkRun const& run : runs) {
    list.push_back({{"method", run.method},
                    {"budget_tokens", run.budget_tokens},
                    {"mean_kept_tokens", run.mean_kept_tokens},
                    {"tokens", run.tokens},
                    {"perplexity", number(run.perplexity)},
                    {"perplexity_second_half", number(run.perplexity_second_half)},
                    {"copy_nll", number(run.copy_nll)},
                    {"kv_bytes_end", run.kv_bytes_end},
                    {"plan", run.plan}});
    std::snprintf(line, sizeof(line), "%s,%lld,%.6g,%lld,%.9g,%.9g,%.9g,%lld,", run.method.c_str(),
                  static_cast<long long>(run.budget_tokens), run.mean_kept_tokens, static_cast<long long>(run.tokens),
                  run.perplexity, run.perplexity_second_half, run.copy_nll, static_cast<long long>(run.kv_bytes_end));
    csv += line + run.plan + "\n";
  }
  ha::write_file(folder / "benchmark.csv", csv);
  ha::write_file(folder / "benchmark.json", document.dump(2) + "\n");
}

}  // namespace llama_adapter
