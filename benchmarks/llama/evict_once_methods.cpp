#include "llama/evict_once.hpp"
#include "llama/lookup_text.hpp"
#include "tools/llama/calibration_text.hpp"

#include <headaware/classify/builders.hpp>
#include <headaware/error.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/plan/budget.hpp>
#include <headaware/plan/compare.hpp>
#include <headaware/plan/uniform_plan.hpp>
#include <headaware/policy/policy_window.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

std::vector<OncePiece> once_pieces(Model const& model, std::span<std::int32_t const> tokens, OnceOptions const& options,
                                   OncePlace const& place) {
  constexpr auto where = "benchmark --evict_once";
  std::int64_t const prefix = options.prefix - (model.begins_with_bos() ? 1 : 0);
  std::vector<OncePiece> pieces;
  auto const add = [&](OnceKind kind, std::int64_t first, std::int64_t next, std::int64_t count) {
    std::int64_t const last = std::ssize(tokens) - std::max(first + prefix, next + count) + first;
    ha::require(first >= 0 && first <= last, "start of a passage", {"in [0, ", last, "]"}, first, where);
    OncePiece piece{.kind = kind, .prefix = passage(model, tokens, first, prefix, false)};
    auto const after = tokens.subspan(static_cast<std::size_t>(next), static_cast<std::size_t>(count));
    piece.continuation.assign(after.begin(), after.end());
    for (std::int64_t i = 0; i + 1 < count; ++i) piece.counted.push_back(i);
    pieces.push_back(std::move(piece));
  };
  for (std::int64_t const first : place.passages) add(OnceKind::passage, first, first + prefix, options.continuation);
  for (std::int64_t const first : place.copies) {
    add(OnceKind::copy, first, first, std::min(prefix, options.continuation));
  }
  for (std::int64_t i = 0; i < place.lookups; ++i) {
    auto const text = lookup_text(model, options.prefix, place.questions, static_cast<std::uint32_t>(2 * i + 1));
    OncePiece piece{.kind = OnceKind::lookup, .prefix = text.list, .continuation = text.questions};
    for (std::int64_t const token : text.digits) piece.counted.push_back(token - 1);
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

ha::PolicyTable scaled_windows(ha::PolicyTable const& table, std::int64_t size, std::int64_t length) {
  constexpr auto where = "scaled_windows";
  std::vector<ha::WindowRule> rules;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      auto const& policy = table.at(layer, head);
      auto const all = static_cast<std::int32_t>(length);
      rules.push_back(
          ha::policy_window(policy, where).value_or(policy.is<ha::Full>() ? ha::WindowRule{0, all} : ha::WindowRule{}));
    }
  }
  auto const heads = std::ssize(rules);
  auto const window_at = [&](ha::WindowRule const& rule, double scale) {
    return static_cast<std::int32_t>(std::min(static_cast<double>(length), std::floor(scale * rule.window)));
  };
  auto const tokens_at = [&](double scale) {
    std::int64_t tokens = 0;
    for (auto const& rule : rules) tokens += ha::WindowRule{rule.sink, window_at(rule, scale)}.range(length).count();
    return tokens;
  };
  std::int64_t const wanted = std::min(size, length) * heads;
  ha::require(tokens_at(0) <= wanted, "tokens a KV head", {"at least those of the sinks, ", tokens_at(0) / heads}, size,
              where);
  double low = 0;
  double high = static_cast<double>(length) + 1;
  for (int i = 0; i < 60; ++i) {
    double const middle = (low + high) / 2;
    (tokens_at(middle) <= wanted ? low : high) = middle;
  }
  std::int64_t left = wanted - tokens_at(low);
  ha::PolicyTable result = table;
  std::size_t next = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      ha::WindowRule const& rule = rules[next++];
      ha::SinkWindow windows{.sink = rule.sink, .window = window_at(rule, low)};
      // What rounding leaves over, less than a token a head.
      if (left > 0 && rule.window > 0 && windows.sink + windows.window < length) ++windows.window, --left;
      if (windows.window == 0 && windows.sink == 0) {
        result.set(layer, head, ha::Prune{});
      } else if (windows.window == 0) {
        result.set(layer, head, ha::SinkWindow{.sink = windows.sink - 1, .window = 1});
      } else {
        result.set(layer, head, windows);
      }
    }
  }
  return result;
}

namespace {

constexpr std::int64_t least_budget = 8;

/// Sinks and windows of so many tokens a head.
ha::PolicyTable budget_windows(ha::PolicyTable table, std::span<std::int32_t const> budgets) {
  std::size_t next = 0;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      table.set(layer, head, ha::SinkWindow{.sink = 4, .window = budgets[next++] - 4});
    }
  }
  return table;
}

}  // namespace

bool needs_scores(std::string const& method) {
  return method == "budget_windows" || method.starts_with("learned") || method == "expected_attention";
}

std::vector<OnceRun> once_runs(std::vector<std::string> const& methods, std::vector<std::int64_t> const& sizes,
                               std::vector<std::filesystem::path> const& plans, ha::ModelShape const& shape,
                               OnceOptions const& options) {
  constexpr auto where = "benchmark --evict_once";
  std::int64_t const prefix = options.prefix;
  std::vector<OnceRun> runs;
  ha::PolicyTable const full = ha::table_from_model_config(shape, ha::Full{});
  for (std::string const& method : methods) {
    bool const known = std::any_of(once_methods.begin(), once_methods.end(), [&](auto name) { return name == method; });
    ha::require(known, "--method", "one of those that --help lists for --evict_once", method, where);
    ha::require(method != "planned" || !plans.empty(), "--method planned", "--plan too", "none", where);
    ha::require(!needs_scores(method) || options.scorer != nullptr, "--method " + method, "--scores too", "none",
                where);
    if (method == "full") {
      runs.push_back({.method = method, .table = full});
      continue;
    }
    for (std::int64_t const size : sizes) {
      ha::require(size > 4 && size <= prefix, "--sizes", {"more than 4 tokens, and at most --prefix, ", prefix}, size,
                  where);
      if (method == "streaming_llm") {
        auto const tokens = ha::Budget::tokens(static_cast<double>(size));
        runs.push_back({.method = method, .size = size, .table = ha::uniform_table(shape, tokens, prefix, 1, 4)});
      } else if (method == "planned") {
        for (auto const& plan : plans) {
          auto const windows = ha::load_policy_table(plan, shape);
          runs.push_back(
              {.method = method, .plan = plan.string(), .size = size, .table = scaled_windows(windows, size, prefix)});
        }
      } else {
        runs.push_back({.method = method, .size = size, .table = full});
        if (!needs_scores(method) || method == "learned_shared") continue;
        OnceRun& run = runs.back();
        auto const heads = options.scorer->saved.budgets.tokens(static_cast<double>(size), prefix, least_budget);
        ha::require(std::ssize(heads) == full.heads().total(), "KV heads of --scores",
                    {"the model's, ", full.heads().total()}, heads.size(), where);
        run.budgets.assign(heads.begin(), heads.end());
        if (method == "budget_windows") run.table = budget_windows(full, run.budgets);
      }
    }
  }
  return runs;
}

}  // namespace llama_adapter
