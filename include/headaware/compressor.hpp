#pragma once

/// @file
/// The front door, on the CPU: makes a table of policies for a model and compresses KV caches by it.
/// `compressor.cuh` adds the CUDA back end.

#include <headaware/cache/cache_info.hpp>
#include <headaware/cache/compact.hpp>
#include <headaware/cache/compaction.hpp>
#include <headaware/cache/destination.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/classify/builders.hpp>
#include <headaware/classify/head_type.hpp>
#include <headaware/config.hpp>
#include <headaware/error.hpp>
#include <headaware/io/duo_gates.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/head_classifications.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/engines.hpp>
#include <headaware/layout/paged.hpp>
#include <headaware/layout/ragged.hpp>
#include <headaware/layout/strided.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/policy/registry.hpp>
#include <headaware/policy/table.hpp>
#include <headaware/policy/with_keep_lists.hpp>
#include <headaware/token_bytes.hpp>
#include <headaware/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief KV heads per policy, and the tokens of a sequence that they keep.
struct CompressionSummary {
  std::int32_t num_layers = 0;
  std::int32_t num_kv_heads = 0;        ///< per layer; where they differ, of the layer that has most
  std::int64_t length = 0;              ///< tokens of the sequence
  std::vector<std::string> policies{};  ///< names, in the registry's order
  std::vector<std::int64_t> heads{};    ///< KV heads that follow each
  std::vector<double> mean_kept{};      ///< tokens kept per head on average; 0 if no head follows it
  std::int64_t kept_total = 0;          ///< tokens kept, summed over layers and KV heads
  std::int64_t full_total = 0;          ///< those kept where no head evicts any that its layer sees
  double ratio = 1;                     ///< kept_total / full_total

  std::vector<std::string> formats{};        ///< of keys and values, "packed5/packed4"; empty: not asked for
  std::vector<std::int64_t> format_heads{};  ///< KV heads that have each
  /// Of the rows kept, in their heads' formats, whole units of 16 bytes; of scored tokens with their records.
  std::int64_t held_bytes = 0;
  std::int64_t full_bytes = 0;  ///< of `full_total` rows in 16 bits
};

/// @brief Formats the summary as a table.
template <class = void>
[[nodiscard]] std::string to_string(CompressionSummary const& summary) {
  std::int64_t total = 0;
  for (std::int64_t const heads : summary.heads) total += heads;
  std::string text = "policy           KV heads    share  mean tokens kept of " + std::to_string(summary.length) + "\n";
  for (std::size_t i = 0; i < summary.policies.size(); ++i) {
    if (summary.heads[i] == 0) continue;
    char line[128];
    std::snprintf(line, sizeof(line), "%-16s %8lld %7.1f%% %12.1f\n", summary.policies[i].c_str(),
                  static_cast<long long>(summary.heads[i]),
                  100.0 * static_cast<double>(summary.heads[i]) / static_cast<double>(total), summary.mean_kept[i]);
    text += line;
  }
  char line[128];
  std::snprintf(
      line, sizeof(line), "%-16s %8lld  100.0%% %12.1f  (%.1f%% of the cache)\n", "all", static_cast<long long>(total),
      total == 0 ? 0 : static_cast<double>(summary.kept_total) / static_cast<double>(total), 100.0 * summary.ratio);
  text += line;
  if (summary.formats.empty()) return text;
  text += "keys/values in        KV heads\n";
  for (std::size_t i = 0; i < summary.formats.size(); ++i) {
    std::snprintf(line, sizeof(line), "%-21s %8lld\n", summary.formats[i].c_str(),
                  static_cast<long long>(summary.format_heads[i]));
    text += line;
  }
  double const share =
      static_cast<double>(summary.held_bytes) / static_cast<double>(std::max<std::int64_t>(summary.full_bytes, 1));
  std::snprintf(line, sizeof(line), "%lld bytes, %.2f%% of the cache in 16 bits, %lld\n",
                static_cast<long long>(summary.held_bytes), 100 * share, static_cast<long long>(summary.full_bytes));
  return text + line;
}

/// @brief A compressed cache in host memory that owns its storage, ragged: a layer's rows lie after those of the layers
/// before, and where all layers have as many channels row `compaction.offsets()[segment] + i` of `keys` and `values`
/// has the segment's `i`-th kept token.
template <class T, class Table>
struct CompressedCache {
  Compaction<Table> compaction;
  std::vector<T> keys;    ///< [compaction.kept_total(), head_dim]
  std::vector<T> values;  ///< [compaction.kept_total(), value_dim]; of latents none: they are in the keys
  LayerChannels channels;
  std::int64_t head_dim = 0;   ///< of every layer; where they differ, the most of any
  std::int64_t value_dim = 0;  ///< likewise

  /// The rows of one head of one sequence, [kept, head_dim]. @throws ArgumentError if it is out of range
  [[nodiscard]] std::span<T const> head_keys(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head) const {
    return rows(keys, &RowChannels::head_dim, layer, sequence, kv_head);
  }
  /// The same for values, [kept, value_dim].
  [[nodiscard]] std::span<T const> head_values(std::int32_t layer, std::int32_t sequence, std::int32_t kv_head) const {
    return rows(values, &RowChannels::value_dim, layer, sequence, kv_head);
  }
  [[nodiscard]] CacheInfo cache_info() const {
    return headaware::cache_info(compaction, channels.token_bytes(sizeof(T)));
  }

 private:
  std::span<T const> rows(std::vector<T> const& data, std::int64_t RowChannels::*count, std::int32_t layer,
                          std::int32_t sequence, std::int32_t kv_head) const {
    std::int64_t const kept = compaction.kept(layer, sequence, kv_head);
    std::int64_t const segment =
        compaction.first_segment(layer) + std::int64_t{sequence} * compaction.num_kv_heads(layer) + kv_head;
    std::int64_t const width = channels.of(static_cast<std::size_t>(layer)).*count;
    std::int64_t first = compaction.offsets()[static_cast<std::size_t>(segment)] * width;
    if (!channels.alike()) {
      first -= compaction.layer_begin(layer) * width;
      for (std::int32_t l = 0; l < layer; ++l) {
        first += compaction.kept_total(l) * (channels.of(static_cast<std::size_t>(l)).*count);
      }
    }
    return std::span(data).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(kept * width));
  }
};

/// @brief Compresses a cache in host memory in one call, into memory of its own.
/// @param layers       [num_layers], host pointers; those of layers without a cache of their own are not read
/// @param source       how each layer's keys and values lie
/// @param table        policies, one per (layer, KV head)
/// @param lengths      tokens of each sequence
/// @param channels     head_dim where all layers are alike, or the model's shape
/// @param skip_layers  layers left uncompressed
/// @param value_dim    channels of a value, where all layers are alike; 0: as many as of a key
/// @throws ArgumentError as `compress` does
template <LayerRange Layers, class Source, class Registry>
[[nodiscard]] auto head_aware_compress(Layers const& layers, Source const& source,
                                       BasicPolicyTable<Registry> const& table, std::span<std::int32_t const> lengths,
                                       LayerChannels const& channels, std::span<std::int32_t const> skip_layers = {},
                                       std::int64_t value_dim = 0) {
  using T = std::remove_cvref_t<decltype(*layer_span(layers)[0].keys)>;
  CompressedCache<T, BasicPolicyTable<Registry>> cache{
      Compaction<BasicPolicyTable<Registry>>(table.skip_layers(skip_layers), lengths), {}, {}, {}};
  cache.channels = detail::checked_channels(channels, value_dim, cache.compaction.heads(), "head_aware_compress");
  cache.head_dim = cache.channels.common().head_dim;
  cache.value_dim = cache.channels.common().value_dim;
  RowChannels const elements = buffer_elements(cache.channels, cache.compaction.num_layers(),
                                               [&](std::int32_t layer) { return cache.compaction.kept_total(layer); });
  cache.keys.resize(static_cast<std::size_t>(elements.head_dim));
  cache.values.resize(static_cast<std::size_t>(elements.value_dim));
  compress(cache.compaction, layers, source,
           ragged(cache.compaction, cache.keys.data(), cache.values.data(), cache.channels));
  return cache;
}

/// @brief Compresses KV caches of a model by a table of policies.
/// @tparam Registry  the policies it may use: `DefaultRegistry`, or `DefaultRegistry::with<Mine>`
template <class Registry = DefaultRegistry>
class BasicCompressor {
 public:
  using Table = BasicPolicyTable<Registry>;
  using Policy = AnyPolicy<Registry>;
  using CompactionType = Compaction<Table>;

  /// @brief Uses a given table: in layers that slide, what its policies mean within their windows.
  /// @param model  a `ModelConfig` where all layers are alike
  /// @throws ArgumentError if the table's layers or KV heads are not those of the model's caches
  BasicCompressor(ModelShape model, Table table)
      : model_(std::move(model)), table_(within_layers(std::move(table), model_, "Compressor")) {}

  /// @brief Makes the table from classified query heads, folded onto KV heads.
  /// @param types  policy of each type of head
  /// @param fold   decides for the query heads of one KV head; by default it keeps what any of them needs
  /// @throws ArgumentError if heads and model disagree
  template <class Fold = FoldUnion>
  static BasicCompressor from_classifications(
      std::span<HeadClassification const> classifications, ModelShape const& model,
      BasicTypePolicies<Registry> const& types = BasicTypePolicies<Registry>::conservative(), Fold const& fold = {}) {
    return {model, table_from_classifications<Registry>(classifications, model, types, fold)};
  }

  /// @brief The same from a file: `head_classifications.json` or `refined_classifications.json`.
  /// @throws FileError, FormatError, ArgumentError
  template <class Fold = FoldUnion>
  static BasicCompressor from_classifications(
      FilePath const& path, ModelShape const& model,
      BasicTypePolicies<Registry> const& types = BasicTypePolicies<Registry>::conservative(), Fold const& fold = {}) {
    std::vector<HeadClassification> const classifications = load_classifications(path);
    return from_classifications(std::span<HeadClassification const>(classifications), model, types, fold);
  }

  /// @brief The same from either file that holds policies: a planner's `plan.json`, or classifications. Of a plan by
  /// bytes these are its windows; the formats that make them fit come from `load_format_table`.
  /// @param types  policy of each type of head; unused for a plan
  /// @throws FileError, FormatError, ArgumentError
  static BasicCompressor from_policies(
      FilePath const& path, ModelShape const& model,
      BasicTypePolicies<Registry> const& types = BasicTypePolicies<Registry>::conservative()) {
    return {model, load_policy_table<Registry>(path, model, types)};
  }

  /// @brief Gives every head one policy, within the windows of layers that slide; by default StreamingLLM's sinks and
  /// window.
  static BasicCompressor from_model_config(ModelShape const& model,
                                           Policy const& policy = SinkWindow{.sink = 4, .window = 508}) {
    return {model, table_from_model_config<Registry>(model, policy)};
  }

  /// @brief The same, the model's shape read from a Hugging Face `config.json`: include `headaware/io/model_shape.hpp`.
  template <class Path = FilePath>
  static BasicCompressor from_model_config(std::type_identity_t<Path> const& path,
                                           Policy const& policy = SinkWindow{.sink = 4, .window = 508}) {
    static_assert(
        requires { load_model_shape(path); },
        "headaware: a config.json's path goes with #include <headaware/io/model_shape.hpp>");
    return from_model_config(load_model_shape(path), policy);
  }

  /// @brief From DuoAttention's trained gates: `Full` for the share of heads with the largest gates, as they are
  /// published (`FullHeadShare{0.5}`), sinks and window for the others.
  static BasicCompressor from_duo_gates(DuoGates const& gates, ModelShape const& model, FullHeadShare full) {
    return {model, table_from_duo_gates<Registry>(gates, model, full)};
  }

  /// @brief The same with `Full` above a threshold.
  /// @param threshold  gate value; 0.5 is beneath nine in ten gates of some published models; in braces,
  ///                   `{0.5}`, a number is a share
  template <std::convertible_to<double> Threshold>
  static BasicCompressor from_duo_gates(DuoGates const& gates, ModelShape const& model, Threshold threshold) {
    return {model, table_from_duo_gates<Registry>(gates, model, threshold)};
  }

  /// @brief The same with a threshold of 0.5.
  [[deprecated(
      "say which: FullHeadShare{0.5}, as DuoAttention's models are published, or a threshold")]] static BasicCompressor
  from_duo_gates(DuoGates const& gates, ModelShape const& model) {
    return from_duo_gates(gates, model, 0.5);
  }

  /// The model's layers.
  [[nodiscard]] ModelShape const& model() const { return model_; }
  [[nodiscard]] Table const& table() const { return table_; }

  /// @brief The policy of one KV head. @throws ArgumentError if it is out of range
  [[nodiscard]] Policy const& head_config(std::int32_t layer, std::int32_t kv_head) const {
    return table_.at(layer, kv_head);
  }

  /// @brief The sizes of the compressed cache, before anything moves.
  /// @param lengths      tokens of each sequence
  /// @param skip_layers  layers left uncompressed
  [[nodiscard]] CompactionType compaction(std::span<std::int32_t const> lengths,
                                          std::span<std::int32_t const> skip_layers = {}) const {
    return CompactionType(table_.skip_layers(skip_layers), lengths);
  }

  /// @brief Compresses a cache in host memory into one that owns its storage; see `head_aware_compress`.
  /// @param channels  head_dim where all layers are alike, or the shape: `model()`, if it says them
  template <LayerRange Layers, class Source>
  [[nodiscard]] auto compress(Layers const& layers, Source const& source, std::span<std::int32_t const> lengths,
                              LayerChannels const& channels, std::span<std::int32_t const> skip_layers = {},
                              std::int64_t value_dim = 0) const {
    return head_aware_compress(layers, source, table_, lengths, channels, skip_layers, value_dim);
  }

  /// @brief Counts the heads per policy, and the tokens they keep of a sequence of `length`.
  /// @throws ArgumentError on a negative length
  [[nodiscard]] CompressionSummary compression_summary(std::int64_t length) const {
    require(length >= 0, "negative length", "tokens >= 0", length, "compression_summary");
    require(length <= 0x7fffffff, "length", "at most 2147483647", length, "compression_summary");
    CompressionSummary summary{
        .num_layers = table_.num_layers(), .num_kv_heads = table_.num_kv_heads(), .length = length};
    summary.policies.assign(Registry::names.begin(), Registry::names.end());
    summary.heads.resize(Registry::size);
    summary.mean_kept.resize(Registry::size);
    for (std::int32_t layer = 0; layer < table_.num_layers(); ++layer) {
      std::int64_t const window = table_.window(layer);
      summary.full_total += table_.num_kv_heads(layer) * (window != 0 ? std::min(window, length) : length);
      for (std::int32_t head = 0; head < table_.num_kv_heads(layer); ++head) {
        Policy const& policy = table_.at(layer, head);
        std::int64_t const kept = policy.visit([&](auto const& p) { return kept_count(p, length); });
        summary.heads[policy.id()] += 1;
        summary.mean_kept[policy.id()] += static_cast<double>(kept);
        summary.kept_total += kept;
      }
    }
    for (std::size_t i = 0; i < Registry::size; ++i) {
      if (summary.heads[i] > 0) summary.mean_kept[i] /= static_cast<double>(summary.heads[i]);
    }
    std::int64_t const full = summary.full_total;
    summary.ratio = full == 0 ? 1 : static_cast<double>(summary.kept_total) / static_cast<double>(full);
    return summary;
  }

  /// @brief The same where heads have formats of their own: bytes, too, and the heads per pair of formats.
  /// @param formats   a `BasicFormatTable` of the same layers and KV heads: include `headaware/format/table.hpp`
  /// @param channels  of the rows before they are encoded: head_dim where all layers are alike, or the shape:
  /// `model()`,
  ///                  if it says them
  /// @throws ArgumentError on a negative length, formats of other heads, channels that are not positive
  template <class Formats>
  [[nodiscard]] CompressionSummary compression_summary(std::int64_t length, Formats const& formats,
                                                       LayerChannels const& channels,
                                                       std::int64_t value_dim = 0) const {
    constexpr auto where = "compression_summary";
    CompressionSummary summary = compression_summary(length);
    LayerChannels const all = detail::checked_channels(channels, value_dim, table_.heads(), where);
    LayerBytes const token = all.token_bytes(2);
    require(formats.num_layers() == table_.num_layers(), "format table's layers", table_.num_layers(),
            formats.num_layers(), where);
    for (std::int32_t layer = 0; layer < table_.num_layers(); ++layer) {
      std::int32_t const heads = table_.num_kv_heads(layer);
      require(formats.heads().count(layer) == heads, "format table's KV heads", heads, formats.heads().count(layer),
              {where, ", layer ", layer});
      std::int64_t const window = table_.window(layer);
      summary.full_bytes +=
          detail::elements(where, {heads, window != 0 ? std::min(window, length) : length, token.of(layer).total()});
      RowChannels const& rows = all.of(static_cast<std::size_t>(layer));
      for (std::int32_t head = 0; head < heads; ++head) {
        auto const& of = formats.at(layer, head);
        std::int64_t const kept = table_.visit(layer, head, [&](auto const& p) { return kept_count(p, length); });
        constexpr std::int64_t unit_bytes = 16;
        summary.held_bytes += detail::elements(where, {kept, of.row_units(rows.head_dim, rows.value_dim), unit_bytes});
        summary.held_bytes += table_.visit(layer, head, []<class P>(P const& p) -> std::int64_t {
          if constexpr (requires { p.record_bytes(); }) return p.record_bytes();
          return 0;
        });
        std::string const name = of.name();
        auto const known = std::find(summary.formats.begin(), summary.formats.end(), name) - summary.formats.begin();
        if (known == std::ssize(summary.formats)) {
          summary.formats.push_back(name);
          summary.format_heads.push_back(0);
        }
        ++summary.format_heads[static_cast<std::size_t>(known)];
      }
    }
    return summary;
  }

 private:
  ModelShape model_;
  Table table_;
};

using Compressor = BasicCompressor<>;

HEADAWARE_NAMESPACE_END
