#include "llama/loss_store.hpp"

#include "support/content_hash.hpp"
#include "support/folder.hpp"
#include "support/progress.hpp"

#include <headaware/error.hpp>
#include <headaware/io/npy.hpp>
#include <headaware/plan/compare.hpp>

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <numeric>
#include <set>
#include <utility>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// A model by its size and samples of its bytes: reading all of them would take longer than some runs.
std::string identity_of(std::filesystem::path const& path) {
  constexpr std::uint64_t block = std::uint64_t{1} << 16;
  constexpr std::uint64_t blocks = 64;
  std::uint64_t const size = std::filesystem::file_size(path);
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(block, '\0');
  support::ContentHash hash;
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
    for (std::int32_t head = 0; head < table.num_kv_heads(); ++head) {
      auto const& policy = table.at(layer, head);
      auto const kept = ha::detail::sinks_of(policy, "LossStore");
      text += std::string(policy.name()) + " " + std::to_string(kept.sink) + " " + std::to_string(kept.window) + ";";
    }
  }
  return text;
}

}  // namespace

LossStore::LossStore(PolicyRun& run, std::filesystem::path folder)
    : run_(&run),
      folder_(std::move(folder)),
      model_(identity_of(run.model().path()) + (run.fused() ? " fused" : " plain") +
             (run.positions() == KeyPositions::cache ? " cache positions" : "")) {
  support::make_folder(folder_);
}

std::filesystem::path LossStore::path_of(LossJob const& job) const {
  support::ContentHash hash;
  hash.add(model_);
  hash.add(text_of(job.table));
  hash.add(job.tokens);
  return folder_ / (hash.text() + ".npy");
}

std::int64_t LossStore::tokens_to_run(std::span<LossJob const> jobs) const {
  std::set<std::filesystem::path> missing;
  std::int64_t tokens = 0;
  for (LossJob const& job : jobs) {
    auto const path = path_of(job);
    if (!std::filesystem::exists(path) && missing.insert(path).second) tokens += std::ssize(job.tokens);
  }
  return tokens;
}

std::vector<std::vector<double>> LossStore::losses(std::string const& what, std::span<LossJob const> jobs) {
  std::int64_t total = 0;
  std::int64_t done = 0;
  for (LossJob const& job : jobs) {
    auto const tokens = static_cast<std::int64_t>(job.tokens.size());
    total += tokens;
    if (std::filesystem::exists(path_of(job))) done += tokens;
  }
  bool const runs = done < total;
  support::Interrupt const interrupt;
  support::Progress progress(what, "tokens", total, done);
  auto const layers = static_cast<double>(run_->model().shape().layers);
  std::vector<std::vector<double>> result;
  for (LossJob const& job : jobs) {
    auto const path = path_of(job);
    if (!std::filesystem::exists(path)) {
      auto const tokens = static_cast<std::int64_t>(job.tokens.size());
      auto const losses = run_->losses(job.tokens, job.table, [&](std::int32_t layer) {
        if (interrupt.asked()) throw support::Interrupted{};
        progress.show(static_cast<double>(done) + static_cast<double>(tokens) * (layer + 1) / layers);
      });
      ha::save_npy(path, ha::NpyArray::of({std::ssize(losses)}, std::span<double const>(losses)));
      done += tokens;
    }
    auto const saved = ha::load_npy(path);
    auto const values = saved.as<double>();
    ha::detail::require(values.size() + 1 == job.tokens.size(), "losses", job.tokens.size() - 1, values.size(),
                        path.c_str());
    result.emplace_back(values.begin(), values.end());
  }
  if (runs) progress.finish(static_cast<double>(done));
  return result;
}

double mean_loss(std::span<double const> losses, std::int64_t first) {
  auto const count = static_cast<std::int64_t>(losses.size());
  ha::detail::require(first >= 0 && first < count, "first", "in [0, " + std::to_string(count) + ")", first,
                      "mean_loss");
  auto const counted = losses.subspan(static_cast<std::size_t>(first));
  return std::accumulate(counted.begin(), counted.end(), 0.0) / static_cast<double>(counted.size());
}

}  // namespace llama_adapter
