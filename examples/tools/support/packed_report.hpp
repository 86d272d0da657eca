#pragma once

// Compresses a batch into every form of a cache of encoded rows, and says what they hold and lose.

#include "tools/support/best_time.hpp"
#include "tools/support/cache_batch.hpp"
#include "tools/support/packed_batch.hpp"

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/packed_info.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/per_layer.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace support {

/// Formats of a batch's layers: of those that are skipped 16 bits, of a batch of captured layers alone theirs.
/// @param layers  of the model, [layers of the batch]; empty: all, in order
inline headaware::FormatTable batch_formats(headaware::FormatTable const& model, headaware::ModelShape const& batch,
                                            std::vector<std::int32_t> const& layers,
                                            std::vector<std::int32_t> const& skipped) {
  headaware::FormatTable result(batch);
  for (std::int32_t i = 0; i < batch.num_layers(); ++i) {
    std::int32_t const layer = layers.empty() ? i : layers[static_cast<std::size_t>(i)];
    if (std::find(skipped.begin(), skipped.end(), layer) != skipped.end()) continue;
    for (std::int32_t head = 0; head < result.heads().count(i); ++head) result.set(i, head, model.at(layer, head));
  }
  return result;
}

/// Compresses into one form, checks it, and prints a line.
template <class Form>
PackedCheck run_packed_form(char const* form, headaware::Compaction<> const& plan, CacheBatch const& batch,
                            headaware::PackedDestination<Form> const& planned) {
  std::vector<headaware::RowUnit> rows(static_cast<std::size_t>(planned.total_units()));
  auto const kept = planned.with_buffer(rows.data());
  auto const layers = batch.float_layers();
  double const seconds =
      best_of_three([&] { headaware::compress(plan, layers, headaware::per_layer(batch.layouts()), kept); });
  PackedCheck const check = check_packed(plan, batch, kept);
  auto const bytes = static_cast<double>(rows.size() * sizeof(headaware::RowUnit));
  std::printf("  %-13s %9.2f MiB in %8.2f ms, %lld rows checked against their source, encoded\n", form, bytes / 1048576,
              seconds * 1e3, static_cast<long long>(check.rows));
  headaware::require(check.rows == plan.kept_total(), "rows checked", plan.kept_total(), check.rows, form);
  return check;
}

/// Compresses into every form of encoded rows, and prints what the heads' formats are, what each form takes, and the
/// cache before and after.
/// @param real  whether the batch's numbers are a model's, so that what rounding loses of them says something
inline void compress_packed(headaware::Compaction<> const& plan, CacheBatch const& batch,
                            headaware::FormatTable const& formats, bool real) {
  namespace ha = headaware;
  ha::LayerChannels const& channels = batch.channels();
  auto const ragged = ha::packed_ragged(plan, formats, channels);
  PackedCheck const check = run_packed_form("ragged", plan, batch, ragged);
  run_packed_form("padded left", plan, batch, ha::packed_padded(plan, formats, channels, ha::Alignment::left));
  run_packed_form("padded right", plan, batch, ha::packed_padded(plan, formats, channels, ha::Alignment::right));
  run_packed_form("grouped", plan, batch, ha::packed_grouped(plan, formats, channels));

  std::printf("\nformats of keys/values, KV heads:\n");
  for (auto const& [name, heads] : heads_by_format(formats)) {
    std::printf("  %-21s %6lld\n", name.c_str(), static_cast<long long>(heads));
  }
  if (real) {
    std::printf("rounding loses %.4f%% of the kept keys' squares, %.4f%% of the values'\n", 100 * check.keys.share(),
                100 * check.values.share());
  }
  std::printf("\nbefore, in 16 bits\n%s\nafter, in the heads' formats\n%s",
              to_string(ha::full_cache_info(plan, channels.token_bytes(2))).c_str(),
              to_string(ha::cache_info(plan, ragged)).c_str());
}

}  // namespace support
