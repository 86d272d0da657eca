#include "tools/llama/loss_store.hpp"

#include "tools/llama/cached_model.hpp"
#include "tools/llama/reference_predictions.hpp"
#include "tools/llama/saved_losses.hpp"
#include "tools/support/folder.hpp"
#include "tools/support/progress.hpp"

#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/io/content_hash.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/policy/policy_window.hpp>
#include <headaware/policy/scored_heads.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

std::string identity_of(Model const& model) {
  std::filesystem::path const& path = model.path();
  constexpr std::uint64_t block = std::uint64_t{1} << 16;
  constexpr std::uint64_t blocks = 64;
  std::uint64_t const size = std::filesystem::file_size(path);
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(block, '\0');
  ha::ContentHash hash;
  for (std::uint64_t i = 0; i <= blocks; ++i) {
    stream.seekg(static_cast<std::streamoff>(size > block ? (size - block) / blocks * i : 0));
    stream.read(bytes.data(), static_cast<std::streamsize>(std::min(block, size)));
    hash.add(bytes);
  }
  return std::to_string(size) + " " + hash.text();
}

std::string text_of(ha::PolicyTable const& table) {
  std::string text;
  for (std::int32_t layer = 0; layer < table.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < table.num_kv_heads(layer); ++head) {
      auto const& policy = table.at(layer, head);
      if (policy.is<ha::SinkWindowScored>()) {
        auto const& p = policy.get<ha::SinkWindowScored>();
        text += std::string(policy.name()) + " " + std::to_string(p.sink) + " " + std::to_string(p.window) + " " +
                std::to_string(p.scored) + ";";
        continue;
      }
      auto const kept = ha::policy_window(policy, "LossStore").value_or(ha::WindowRule{});
      text += std::string(policy.name()) + " " + std::to_string(kept.sink) + " " + std::to_string(kept.window) + ";";
    }
  }
  return text;
}

std::string text_of(ha::FormatTable const& formats) {
  std::string text;
  for (std::int32_t layer = 0; layer < formats.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < formats.heads().count(layer); ++head) {
      ha::HeadFormats const& of = formats.at(layer, head);
      text += of.name();
      // Without scales, texts are those of losses that were saved before there were any.
      if (of.key.scale() != 1 || of.value.scale() != 1) {
        for (float const scale : {of.key.scale(), of.value.scale()}) {
          text += " " + std::to_string(std::bit_cast<std::uint32_t>(scale));
        }
      }
      text += ";";
    }
  }
  return text;
}

std::string text_of(Rounding const& rounding) {
  std::string text = text_of(rounding.formats);
  if (!rounding.rotated) text += " not rotated";
  if (rounding.has_exact()) {
    text += " exact " + std::to_string(rounding.exact.sink) + " " + std::to_string(rounding.exact.window);
  }
  return text;
}

namespace {

/// Tells divergences from losses.
std::string divergence_kind(std::int64_t first) { return " divergence from " + std::to_string(first); }

}  // namespace

LossStore::LossStore(PolicyRun& run, std::filesystem::path folder)
    : run_(&run),
      folder_(std::move(folder)),
      model_(identity_of(run.model()) + (run.fused() ? " fused" : " plain") +
             (run.positions() == KeyPositions::cache ? " cache positions" : "")) {
  support::make_folder(folder_);
}

std::filesystem::path LossStore::path_of(LossJob const& job, std::string const& kind) const {
  ha::ContentHash hash;
  hash.add(model_ + kind);
  hash.add(text_of(job.table));
  if (std::string const rounding = text_of(job.rounding); !rounding.empty()) hash.add(rounding);
  hash.add(job.tokens);
  return folder_ / (hash.text() + ".npy");
}

std::int64_t LossStore::tokens_to_run(std::span<LossJob const> jobs, std::optional<std::int64_t> divergences) const {
  std::string const kind = divergences ? divergence_kind(*divergences) : "";
  std::set<std::filesystem::path> missing;
  std::int64_t tokens = 0;
  for (LossJob const& job : jobs) {
    auto const path = path_of(job, kind);
    if (!std::filesystem::exists(path) && missing.insert(path).second) tokens += std::ssize(job.tokens);
  }
  return tokens;
}

/// @param first  the first token that has a value; @param run  (job, function to call after each layer) to values
template <class Run>
std::vector<std::vector<double>> LossStore::run_missing(std::string const& what, std::span<LossJob const> jobs,
                                                        std::string const& kind, std::int64_t first, Run const& run) {
  std::int64_t total = 0;
  std::int64_t done = 0;
  std::set<std::filesystem::path> counted;  // equal jobs run once
  for (LossJob const& job : jobs) {
    auto const path = path_of(job, kind);
    if (!counted.insert(path).second) continue;
    total += std::ssize(job.tokens);
    if (std::filesystem::exists(path)) done += std::ssize(job.tokens);
  }
  bool const runs = done < total;
  support::Interrupt const interrupt;
  support::Progress progress(what, "tokens", total, done);
  auto const layers = static_cast<double>(run_->model().shape().num_layers());
  std::vector<std::vector<double>> result;
  for (LossJob const& job : jobs) {
    auto const path = path_of(job, kind);
    if (!std::filesystem::exists(path)) {
      auto const tokens = static_cast<std::int64_t>(job.tokens.size());
      std::vector<double> const values = run(job, [&](std::int32_t layer) {
        interrupt.check();
        progress.show(static_cast<double>(done) + static_cast<double>(tokens) * (layer + 1) / layers);
      });
      ha::save_npy(path, ha::NpyArray::of({std::ssize(values)}, std::span<double const>(values)));
      done += tokens;
    }
    result.push_back(parse_losses(ha::read_binary_file(path), path.string(), std::ssize(job.tokens) - 1 - first));
  }
  if (runs) progress.finish(static_cast<double>(done));
  return result;
}

namespace {

/// @throws ArgumentError if rows are told by scores, which masks do not know
void require_masks(std::span<LossJob const> jobs) {
  for (LossJob const& job : jobs) {
    ha::require(!ha::has_scored_heads(job.table), "policies",
                "windows: scores of rows are not known where policies "
                "are masks (leave --masked out)",
                "sink_window_scored", "LossStore");
  }
}

}  // namespace

std::vector<std::vector<double>> LossStore::evicted_losses(std::string const& what, std::span<LossJob const> jobs,
                                                           ha::RowScorer const& scorer, std::int32_t threads) {
  constexpr std::size_t chunk = 256;
  Model const& model = run_->model();
  std::string const kind = " evicted, half " + scorer.saved.weight_hash;
  return run_missing(what, jobs, kind, 0, [&](LossJob const& job, PolicyRun::LayerDone const& layer_done) {
    CachedModel<ha::float16> cached(model, job.table, job.rounding.formats, std::ssize(job.tokens),
                                    {.chunk = chunk, .all_logits = true, .threads = threads, .scorer = &scorer});
    return losses_of(cached, job.tokens, chunk, [&](std::int64_t read) {
      layer_done(static_cast<std::int32_t>(model.shape().num_layers() * read / std::ssize(job.tokens)) - 1);
    });
  });
}

std::vector<std::vector<double>> LossStore::losses(std::string const& what, std::span<LossJob const> jobs) {
  require_masks(jobs);
  return run_missing(what, jobs, "", 0, [&](LossJob const& job, PolicyRun::LayerDone const& layer_done) {
    return run_->losses(job.tokens, job.table, job.rounding, layer_done);
  });
}

LossStore::~LossStore() = default;

ReferencePredictions const& LossStore::reference(std::span<std::int32_t const> tokens, std::int64_t first,
                                                 PolicyRun::LayerDone const& layer_done) {
  constexpr std::size_t most_bytes = std::size_t{3} << 30;
  auto const same = [&](Reference const& one) { return one.first == first && std::ranges::equal(one.tokens, tokens); };
  auto const found = std::find_if(references_.begin(), references_.end(), same);
  if (found != references_.end()) {
    references_.splice(references_.begin(), references_, found);
    return *found->predictions;
  }
  std::size_t bytes = 0;
  for (auto const& one : references_) bytes += one.predictions->bytes();
  // As if all were of the size of the latest: room for the new one is made before it takes it.
  while (!references_.empty() && bytes + references_.front().predictions->bytes() > most_bytes) {
    bytes -= references_.back().predictions->bytes();
    references_.pop_back();
  }
  auto predictions = std::make_unique<ReferencePredictions>(*run_, tokens, first, layer_done);
  references_.push_front({{tokens.begin(), tokens.end()}, first, std::move(predictions)});
  return *references_.front().predictions;
}

std::vector<std::vector<double>> LossStore::divergences(std::string const& what, std::span<LossJob const> jobs,
                                                        std::int64_t first) {
  require_masks(jobs);
  std::string const kind = divergence_kind(first);
  return run_missing(what, jobs, kind, first, [&](LossJob const& job, PolicyRun::LayerDone const& layer_done) {
    auto const& expected = reference(job.tokens, first, [&](std::int32_t) { layer_done(-1); });
    (void)run_->losses(job.tokens, job.table, job.rounding, layer_done);
    return expected.divergence(*run_);
  });
}

double mean_loss(std::span<double const> losses) {
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
}

double mean_loss(std::span<double const> losses, std::int64_t first) {
  auto const count = static_cast<std::int64_t>(losses.size());
  ha::require(first >= 0 && first < count, "first", {"in [0, ", count, ")"}, first, "mean_loss");
  return mean_loss(losses.subspan(static_cast<std::size_t>(first)));
}

}  // namespace llama_adapter
