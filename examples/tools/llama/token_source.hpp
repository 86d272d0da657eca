#pragma once

// Attention of a model over pieces of text that are tokens already.

#include "tools/analysis/attention_source.hpp"
#include "tools/llama/output_projection.hpp"
#include "tools/llama/policy_run.hpp"
#include "tools/llama/tapped_qkv.hpp"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace llama_adapter {

class TokenSource : public analysis::AttentionSource {
 public:
  /// @param run  borrowed, @param pieces  borrowed @param description  tells this observation from others
  TokenSource(PolicyRun& run, std::vector<std::vector<std::int32_t>> const& pieces, std::string description)
      : run_(&run),
        pieces_(&pieces),
        description_(std::move(description)),
        projections_(run.model().path(), run.model().info(), run.model().shape()) {}

  [[nodiscard]] std::string name() const override { return run_->model().info().name; }
  [[nodiscard]] std::string description() const override { return description_; }
  [[nodiscard]] headaware::ModelShape model() const override { return run_->model().shape(); }
  [[nodiscard]] std::vector<std::int64_t> texts() const override {
    std::vector<std::int64_t> result;
    for (auto const& piece : *pieces_) result.push_back(std::ssize(piece));
    return result;
  }
  void run(std::size_t text, Handler const& handler) override {
    run_->observe(pieces_->at(text), [&](TappedAttention const& attention) {
      handler({attention.layer, qkv_of(attention), score_of(attention)});
    });
  }
  [[nodiscard]] std::vector<float> output_projection(std::int32_t layer) const override {
    return projections_.layer(layer);
  }

 private:
  PolicyRun* run_;
  std::vector<std::vector<std::int32_t>> const* pieces_;
  std::string description_;
  OutputProjections projections_;
};

}  // namespace llama_adapter
