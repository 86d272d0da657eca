#pragma once

// A batch of sequences compressed into caches of encoded rows, every row compared with its source.

#include "tools/support/cache_batch.hpp"

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/pack.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/element.hpp>
#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layout/per_layer.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace support {

/// What encoding lost of rows: squared errors beside squared numbers.
struct RoundingError {
  double error = 0;
  double size = 0;

  [[nodiscard]] double share() const { return size > 0 ? error / size : 0; }
};

/// What a comparison of a packed cache with its source found.
struct PackedCheck {
  std::int64_t rows = 0;  ///< compared, keys and values as one
  RoundingError keys;
  RoundingError values;
};

/// One head's rows as they should be, and what they lose.
class ExpectedRow {
 public:
  ExpectedRow(headaware::HeadFormats const& formats, headaware::RowChannels const& channels)
      : formats_(formats), channels_(channels) {}

  /// @param key, value  bits of float16, [head_dim] and [value_dim]
  void set(std::uint16_t const* key, std::uint16_t const* value, PackedCheck& check) {
    words_.clear();
    add(formats_.key, key, channels_.head_dim, check.keys);
    if (channels_.value_dim > 0) add(formats_.value, value, channels_.value_dim, check.values);
    words_.resize((words_.size() + 3) / 4 * 4);
  }
  [[nodiscard]] bool is(headaware::RowUnit const* row) const {
    return std::equal(words_.begin(), words_.end(), row->words);
  }

 private:
  void add(headaware::AnyFormat<> const& format, std::uint16_t const* bits, std::int64_t channels,
           RoundingError& error) {
    x_.resize(static_cast<std::size_t>(channels));
    rounded_.resize(x_.size());
    for (std::size_t c = 0; c < x_.size(); ++c) x_[c] = headaware::to_float(headaware::float16{bits[c]});
    std::size_t const first = words_.size();
    words_.resize(first + static_cast<std::size_t>(format.row_words(channels)));
    format.visit([&](auto const& f) {
      headaware::encode_row(f, x_.data(), channels, words_.data() + first);
      headaware::decode_row(f, words_.data() + first, channels, rounded_.data());
    });
    for (std::size_t c = 0; c < x_.size(); ++c) {
      double const lost = double{rounded_[c]} - double{x_[c]};
      error.error += lost * lost;
      error.size += double{x_[c]} * double{x_[c]};
    }
  }

  headaware::HeadFormats formats_;
  headaware::RowChannels channels_;
  std::vector<std::uint32_t> words_{};
  std::vector<float> x_{};
  std::vector<float> rounded_{};
};

/// Compares every kept row with its source encoded alone, token by token as the policies say.
/// @throws headaware::Error naming the first row that differs
template <class Form>
PackedCheck check_packed(headaware::Compaction<> const& plan, CacheBatch const& batch,
                         headaware::PackedDestination<Form> const& kept) {
  PackedCheck check;
  for (std::int64_t s = 0; s < plan.num_segments(); ++s) {
    headaware::Segment segment = plan.segment(s);
    headaware::place_in_group(plan.table(), segment);
    auto const layer = static_cast<std::size_t>(segment.layer);
    auto const& packed = kept.segments[static_cast<std::size_t>(s)];
    headaware::RowChannels const channels = kept.channels.of(layer);
    auto const rows = kept.form.rows(segment, kept.capacities[layer]);
    ExpectedRow expected(packed.formats, channels);
    plan.table().visit(segment.layer, segment.kv_head, [&](auto const& policy) {
      std::int64_t row = 0;
      for (std::int64_t token = 0; token < segment.length; ++token) {
        if (!policy.keeps(token, segment.length)) continue;
        expected.set(
            batch.key(segment.layer, segment.sequence, segment.kv_head, token),
            channels.value_dim == 0 ? nullptr : batch.value(segment.layer, segment.sequence, segment.kv_head, token),
            check);
        if (!expected.is(kept.layers[layer] + rows.offset(row, packed.units) + packed.shift)) {
          throw headaware::Error({"encoded row", "the source's", "another",
                                  "layer " + std::to_string(segment.layer) + ", KV head " +
                                      std::to_string(segment.kv_head) + ", token " + std::to_string(token)});
        }
        ++row;
        ++check.rows;
      }
    });
  }
  return check;
}

/// Heads per pair of formats, in the order in which they first come: "packed5/packed4".
inline std::vector<std::pair<std::string, std::int64_t>> heads_by_format(headaware::FormatTable const& formats) {
  std::vector<std::pair<std::string, std::int64_t>> result;
  for (std::int32_t layer = 0; layer < formats.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < formats.heads().count(layer); ++head) {
      auto const& of = formats.at(layer, head);
      std::string const name = of.name();
      auto const known =
          std::find_if(result.begin(), result.end(), [&](auto const& each) { return each.first == name; });
      if (known == result.end()) {
        result.emplace_back(name, 1);
      } else {
        ++known->second;
      }
    }
  }
  return result;
}

}  // namespace support
