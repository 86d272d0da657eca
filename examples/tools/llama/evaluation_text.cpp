#include "tools/llama/evaluation_text.hpp"

#include "tools/llama/calibration_text.hpp"
#include "tools/llama/loss_store.hpp"

#include <headaware/error.hpp>

#include <cstddef>

namespace llama_adapter {

namespace ha = headaware;

EvaluationText::EvaluationText(Model const& model, std::span<std::int32_t const> tokens, EvaluationPlace const& place,
                               char const* where)
    : passages_(place.passages.size()), second_half_(place.context / 2) {
  std::int64_t const special = model.begins_with_bos() ? 1 : 0;
  std::int64_t const count = place.context - special;
  // The last token of the first copy predicts the first one of the second.
  second_copy_ = special + count / 2 - 1;
  auto const add = [&](std::vector<std::int64_t> const& starts, std::int64_t length, bool twice) {
    for (std::int64_t const first : starts) {
      bool const fits = first >= 0 && first + length <= std::ssize(tokens);
      ha::require(fits, "start of a passage", {"in [0, ", std::ssize(tokens) - length, "]"}, first, where);
      pieces_.push_back(passage(model, tokens, first, length, twice));
    }
  };
  add(place.passages, count, false);
  add(place.copies, count / 2, true);
}

EvaluationLosses EvaluationText::split(std::span<std::vector<double> const> losses) const {
  ha::require(losses.size() == pieces_.size(), "losses", pieces_.size(), losses.size(), "EvaluationText");
  EvaluationLosses result;
  auto const append = [](std::vector<double>& to, std::vector<double> const& from, std::int64_t first) {
    to.insert(to.end(), from.begin() + first, from.end());
  };
  for (std::size_t i = 0; i < losses.size(); ++i) {
    if (i < passages_) {
      append(result.passages, losses[i], 0);
      append(result.second_halves, losses[i], second_half_);
      result.second_half_means.push_back(mean_loss(losses[i], second_half_));
    } else {
      append(result.copies, losses[i], second_copy_);
      result.copy_means.push_back(mean_loss(losses[i], second_copy_));
    }
  }
  return result;
}

}  // namespace llama_adapter
