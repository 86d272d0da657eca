#pragma once

/// @file
/// Formats that a planner may give heads, and what rows cost in them.

#include <headaware/cache/layer_channels.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/checked.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/format/table.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Whether a format holds 16 bits per channel, whose rounding errors count as none.
[[nodiscard]] inline bool has_sixteen_bits(AnyFormat<> const& format) { return format.is<Fp16>() || format.is<Bf16>(); }
/// @brief The same of keys and values.
[[nodiscard]] inline bool has_sixteen_bits(HeadFormats const& formats) {
  return has_sixteen_bits(formats.key) && has_sixteen_bits(formats.value);
}

/// @brief Rows of a head by the page: where pages are of one row, a page is a row.
struct RowPages {
  std::int64_t rows = 1;   ///< of a page
  std::int64_t bytes = 0;  ///< of a page

  /// Bytes of whole pages that hold so many rows.
  [[nodiscard]] std::int64_t bytes_of(std::int64_t tokens) const { return (tokens + rows - 1) / rows * bytes; }
};

/// @brief Formats that heads may have, chosen with their windows under one budget of bytes.
struct FormatChoice {
  /// Formats of keys and of values that a head may have; of those that cost and lose the same the first. Empty: 16 bits
  /// alone, planned in tokens.
  std::vector<HeadFormats> pairs{};
  /// The cache whose shares budgets are, of 16 bits: that of layers that are skipped, too.
  HeadFormats sixteen_bits{};
  /// Channels of a key, and of a value, where all layers are alike; where they differ, their shapes say them.
  std::int64_t head_dim = 0;

  friend bool operator==(FormatChoice const&, FormatChoice const&) = default;

  /// Whether plans are by bytes.
  [[nodiscard]] bool by_bytes() const { return !pairs.empty(); }
  /// @throws ArgumentError if fields of a format make no sense, or `sixteen_bits` are others
  void validate() const {
    constexpr auto where = "FormatChoice";
    for (HeadFormats const& pair : pairs) pair.validate();
    require(has_sixteen_bits(sixteen_bits), "sixteen_bits", "fp16 or bf16", sixteen_bits.name(), where);
    require(head_dim >= 0 && head_dim <= 0x7fffffff, "head_dim", "in [0, 2147483647]", head_dim, where);
  }

  /// @brief Pages of heads with rows of some channels: as many bytes as `page_size` rows of 16 bits, so that all heads
  /// of a layer draw on one pool; rows of fewer bits fill them in greater numbers. Rows are whole units of 16 bytes.
  /// @param page_size  1: no pages
  /// @throws ArgumentError beyond 4 GiB, or if a page holds no row
  [[nodiscard]] RowPages pages(HeadFormats const& formats, RowChannels const& channels, std::int64_t page_size) const {
    constexpr auto where = "FormatChoice::pages";
    auto const bytes = [&](HeadFormats const& of, std::int64_t rows) {
      std::int64_t const units = of.row_units(channels.head_dim, channels.value_dim);
      std::int64_t const size = detail::elements(where, {units, std::int64_t{sizeof(RowUnit)}, rows});
      require(size <= std::int64_t{1} << 32, page_size == 1 ? "bytes of a row" : "bytes of a page", "at most 2^32",
              size, where);
      return size;
    };
    std::int64_t const row = bytes(formats, 1);
    if (page_size == 1 || row == 0) return {page_size, row};
    std::int64_t const page = bytes(sixteen_bits, page_size);
    require(row <= page, "page_size", {"pages that hold a row of ", row, " bytes"}, {page, " bytes"}, where);
    return {page / row, page};
  }
};

/// @brief Returns formats by their names. @throws ArgumentError naming the known formats
[[nodiscard]] inline HeadFormats format_pair(std::string_view key, std::string_view value) {
  return {AnyFormat<>::of_name(key), AnyFormat<>::of_name(value)};
}

/// @brief Returns every pair of a format of keys and one of values. @throws ArgumentError naming the known formats
[[nodiscard]] inline std::vector<HeadFormats> format_pairs(std::span<std::string const> keys,
                                                           std::span<std::string const> values) {
  std::vector<HeadFormats> pairs;
  pairs.reserve(keys.size() * values.size());
  for (std::string const& key : keys) {
    for (std::string const& value : values) pairs.push_back(format_pair(key, value));
  }
  return pairs;
}

/// @brief Returns every pair of 16 bits and the formats named, 16 bits first: of formats that statistics measured
/// (`KvErrors::formats`) all that a planner can choose among.
/// @throws ArgumentError naming the known formats
[[nodiscard]] inline std::vector<HeadFormats> all_format_pairs(std::span<std::string const> measured,
                                                               HeadFormats const& sixteen_bits = {}) {
  std::vector<std::string> keys{std::string(sixteen_bits.key.name())};
  std::vector<std::string> values{std::string(sixteen_bits.value.name())};
  for (std::string const& name : measured) {
    if (has_sixteen_bits(AnyFormat<>::of_name(name))) continue;
    keys.push_back(name);
    values.push_back(name);
  }
  return format_pairs(keys, values);
}

namespace detail {

/// Channels of the rows of all layers, [num_layers]. @param layers  empty: all alike, of `head_dim` channels
/// @throws ArgumentError if they are not known
template <class = void>
[[nodiscard]] std::vector<RowChannels> known_channels(ModelShape const& layers, std::int32_t num_layers,
                                                      std::int64_t head_dim, char const* where) {
  std::vector<RowChannels> result;
  if (layers.num_layers() == 0) {
    require(head_dim > 0, "head_dim", "> 0: the channels of a row, as formats are planned by bytes", head_dim, where);
    result.assign(static_cast<std::size_t>(num_layers), {head_dim, head_dim});
    return result;
  }
  LayerChannels const channels(layers);
  for (std::int32_t layer = 0; layer < num_layers; ++layer) {
    RowChannels const of =
        layers.layer(layer).has_cache() ? channels.of(static_cast<std::size_t>(layer)) : RowChannels{};
    require(!layers.layer(layer).has_cache() || of.head_dim > 0, "head_dim",
            "> 0: the channels of a row, as formats are planned by bytes", of.head_dim, {where, ", layer ", layer});
    result.push_back(of);
  }
  return result;
}

/// @throws ArgumentError unless formats are those of as many heads in every layer
template <class = void>
void require_formats_of(FormatTable const& formats, LayerHeads const& heads, char const* where) {
  require(formats.num_layers() == heads.num_layers, "format table's layers", heads.num_layers, formats.num_layers(),
          where);
  for (std::int32_t layer = 0; layer < heads.num_layers; ++layer) {
    require(formats.heads().count(layer) == heads.count(layer), "format table's KV heads", heads.count(layer),
            formats.heads().count(layer), {where, ", layer ", layer});
  }
}

}  // namespace detail

HEADAWARE_NAMESPACE_END
