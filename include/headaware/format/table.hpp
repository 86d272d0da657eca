#pragma once

/// @file
/// Formats of each KV head's keys and values.

#include <headaware/config.hpp>
#include <headaware/detail/head_records.hpp>
#include <headaware/error.hpp>
#include <headaware/format/registry.hpp>
#include <headaware/layer_heads.hpp>
#include <headaware/model_shape.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Sixteen bytes of a packed cache: rows are whole units, so that all of them may be loaded 16 bytes at a time.
struct alignas(16) RowUnit {
  std::uint32_t words[4] = {};

  friend constexpr bool operator==(RowUnit const&, RowUnit const&) = default;
};

/// @brief The formats of a head's keys and values. A packed row is the key's words, the value's words, and zeros up to
/// a whole `RowUnit`: one row per token, so that a token moves as one.
template <class Registry = DefaultFormats>
struct BasicHeadFormats {
  AnyFormat<Registry> key{};
  AnyFormat<Registry> value{};

  /// "packed5/packed4": key and value.
  [[nodiscard]] std::string name() const { return std::string(key.name()) + "/" + std::string(value.name()); }
  /// Words of the key, where those of the value begin.
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t key_words(std::int64_t head_dim) const {
    return key.row_words(head_dim);
  }
  /// Units of a row. @param value_dim  0: no value of its own (a latent)
  [[nodiscard]] HEADAWARE_HOST_DEVICE std::int64_t row_units(std::int64_t head_dim, std::int64_t value_dim) const {
    return (key.row_words(head_dim) + value.row_words(value_dim) + 3) / 4;
  }
  /// @throws ArgumentError if a format's fields make no sense
  void validate() const {
    key.validate();
    value.validate();
  }

  friend bool operator==(BasicHeadFormats const&, BasicHeadFormats const&) = default;
};
using HeadFormats = BasicHeadFormats<>;

/// @brief Formats per (layer, KV head), on the host, chosen at run time. Layers may have different numbers of KV heads.
template <class Registry = DefaultFormats>
class BasicFormatTable {
 public:
  using Formats = BasicHeadFormats<Registry>;

  BasicFormatTable() = default;
  /// Every head has `formats`. @throws ArgumentError on counts that are not positive, or fields that make no sense
  BasicFormatTable(std::int32_t num_layers, std::int32_t num_kv_heads, Formats const& formats = {}) {
    require(num_layers > 0, "num_layers", "> 0", num_layers, "FormatTable");
    require(num_kv_heads > 0, "num_kv_heads", "> 0", num_kv_heads, "FormatTable");
    formats.validate();
    records_ = {detail::HeadCounts(num_layers, num_kv_heads), formats};
  }
  /// Every head of every layer with a cache of its own has `formats`. @throws ArgumentError on a shape without layers
  explicit BasicFormatTable(ModelShape const& shape, Formats const& formats = {}) {
    require(shape.num_layers() > 0, "num_layers", "> 0", shape.num_layers(), "FormatTable");
    formats.validate();
    std::vector<std::int32_t> counts;
    for (LayerShape const& layer : shape.layers()) counts.push_back(layer.has_cache() ? layer.num_kv_heads : 0);
    records_ = {detail::HeadCounts(counts), formats};
  }

  [[nodiscard]] std::int32_t num_layers() const { return heads().num_layers; }
  /// Numbers of KV heads of all layers; valid while this table lives unchanged.
  [[nodiscard]] LayerHeads heads() const { return records_.heads(); }
  /// @throws ArgumentError if the head is out of range
  [[nodiscard]] Formats const& at(std::int32_t layer, std::int32_t kv_head) const {
    check(layer, kv_head);
    return records_.at(layer, kv_head);
  }
  /// @throws ArgumentError if the head is out of range, or a format's fields make no sense
  void set(std::int32_t layer, std::int32_t kv_head, Formats const& formats) {
    check(layer, kv_head);
    formats.validate();
    records_.at(layer, kv_head) = formats;
  }

  friend bool operator==(BasicFormatTable const&, BasicFormatTable const&) = default;

 private:
  void check(std::int32_t layer, std::int32_t kv_head) const {
    require_index(layer, num_layers(), "layer", "FormatTable");
    require_index(kv_head, heads().count(layer), "KV head", {"FormatTable, layer ", layer});
  }

  detail::HeadRecords<Formats> records_;
};
using FormatTable = BasicFormatTable<>;

HEADAWARE_NAMESPACE_END
