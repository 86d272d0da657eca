#pragma once

/// @file
/// Rows that an engine has encoded already, in formats whose bytes it has (fp16, bf16, fp8, llama.cpp's blocks): into
/// packed caches and back bit for bit, on the CPU. Nothing is decoded.

#include <headaware/cache/compaction.hpp>
#include <headaware/cache/detail/check_engine_rows.hpp>
#include <headaware/cache/detail/check_packed.hpp>
#include <headaware/cache/detail/check_pages.hpp>
#include <headaware/cache/detail/engine_rows.hpp>
#include <headaware/cache/detail/kept_tokens.hpp>
#include <headaware/cache/detail/move_rows.hpp>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/layer_kv.hpp>
#include <headaware/cache/packed_rows.hpp>
#include <headaware/cache/segment.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/parallel_for.hpp>
#include <headaware/layout/per_layer.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

namespace detail {

/// Moves all rows of a compaction. @param tokens_of  (segment, first row, [rows] tokens) fills the tokens in
template <class Table, class Byte, class Tensors, class Form, class Registry, class Tokens>
void move_engine_rows(Compaction<Table> const& compaction, std::span<LayerKv<Byte> const> layers,
                      Tensors const& tensors, PackedDestination<Form, Registry> const& cache, std::int32_t width,
                      Tokens const& tokens_of) {
  auto const tiles = head_tiles(compaction);
  parallel_for(
      static_cast<std::int64_t>(tiles.size()), 1, true, [] { return std::vector<std::int64_t>{}; },
      [&](std::vector<std::int64_t>& tokens, std::int64_t i) {
        Tile const& tile = tiles[static_cast<std::size_t>(i)];
        Segment const segment = compaction.segment(tile.first_segment);
        auto const layer = static_cast<std::size_t>(segment.layer);
        tokens.resize(static_cast<std::size_t>(tile.end - tile.begin));
        tokens_of(segment, tile.begin, std::span(tokens));
        auto const& layout = layer_source(tensors, layer);
        auto const keys = keys_of(layout);
        auto const values = values_of(layout);
        PackedSegment<Registry> const& packed = cache.segments[static_cast<std::size_t>(segment.index)];
        EngineRow const of = engine_row(packed, cache.channels.of(layer), "");
        auto const rows = cache.form.rows(segment, cache.capacities[layer]);
        for (std::int64_t row = tile.begin; row < tile.end; ++row) {
          std::int64_t const token = tokens[static_cast<std::size_t>(row - tile.begin)];
          RowUnit* const units = cache.layers[layer] + rows.offset(row, packed.units) + packed.shift;
          Byte* const key = layers[layer].keys + keys.offset(segment.sequence, segment.kv_head, token, 0);
          Byte* value = nullptr;
          if (of.value.words > 0) {
            value = layers[layer].values + values.offset(segment.sequence, segment.kv_head, token, 0);
          }
          for (std::int32_t u = 0; u < packed.units; ++u) move_engine_unit(width, of, u, key, value, units);
        }
      });
}

}  // namespace detail

/// @brief Takes the kept tokens of an engine's encoded cache into a packed one, bit for bit, on the CPU.
///
/// Tensors are described in bytes: a layout's "channels" are the bytes of a row, `AnyFormat::engine_row_bytes`. Of
/// llama.cpp's `q8_0` cache, all heads of a token side by side, of vLLM's fp8 pages:
/// @code
/// auto const row = ha::AnyFormat<>(ha::LlamaQ8{}).engine_row_bytes(head_dim);       // 34 per 32 channels
/// auto const llama = ha::strided_bshd(1, tokens, num_kv_heads, row);
/// auto const vllm = ha::paged_layout(table, {1, num_kv_heads, head_dim, pages, 16}, ha::PageOrder::nhd);
/// @endcode
/// Which bytes these are, the cache's formats say, which must be one for all heads of a layer's keys, and one for its
/// values. Scales of fp8 are fields of the formats (`Fp8`), and may differ by head; those of llama.cpp's blocks come
/// with the rows. What the last block of a format has beyond the engine's row becomes zeros. Rows that the engine has
/// rotated (llama.cpp does before `q4_0` if told to) stay rotated.
/// @param compaction  made for these lengths: its policies choose the tokens
/// @param layers      [num_layers] `LayerKv<std::byte const>`, host pointers, aligned as `engine_alignment` says
/// @param source      how each layer's rows lie, in bytes: one layout, `KvLayouts`, or `per_layer`. A row's bytes lie
///                    side by side, and rows apart
/// @param kept        made by `packed_ragged`, `packed_padded` or `packed_grouped` for the compaction, or by
///                    `packed_rolling` for its policies, with buffers (`RollingState::start` then counts the tokens)
/// @throws ArgumentError before anything is written: on formats that no engine has or that differ in a layer, rows of
///         other bytes than theirs, strides that are too short or not aligned, tables that have no place for a token, a
///         cache that was not made for the compaction, and buffers that lack or overlap
/// @note   Deterministic. Keys keep the positions that they were turned to
/// @par Cost  Each kept row is read once and written once; all cores with OpenMP
/// @par Source  ggml-org/llama.cpp, src/llama-kv-cache.cpp (a token's heads side by side); vllm-project/vllm,
///              csrc/cache_kernels.cu (pages of fp8)
template <class Table, LayerRange Layers, class Source, class Form, class Registry>
void import_rows(Compaction<Table> const& compaction, Layers const& layers, Source const& source,
                 PackedDestination<Form, Registry> const& kept) {
  constexpr auto where = "import_rows";
  auto const engine = layer_span(layers);
  detail::check_packed_cache(compaction, kept, "destination", where);
  std::int32_t const width =
      detail::check_engine_tensors(detail::bounds_of(compaction), engine, source, kept, "destination", where);
  detail::check_policies(compaction, where);
  detail::check_tables_of_tokens(compaction, source, detail::KeptTokens(compaction), "import_rows, keys",
                                 "import_rows, values");
  std::vector<LayerKv<std::byte const>> from;
  for (auto const& layer : engine) from.push_back({layer.keys, layer.values});
  detail::move_engine_rows(compaction, std::span<LayerKv<std::byte const> const>(from), source, kept, width,
                           [&](Segment const& segment, std::int64_t begin, std::span<std::int64_t> tokens) {
                             detail::stage_tokens(compaction.table(), segment, begin, tokens);
                           });
}

/// @brief Writes all rows of a packed cache into an engine's tensors, bit for bit, on the CPU: a segment's row i
/// becomes token i of its head, as rows of kept tokens lie one after the other.
/// @param compaction  whose kept rows the cache holds: of a rolling cache, one of the present lengths
/// @param kept        as `import_rows` takes it
/// @param layers      [num_layers] `LayerKv<std::byte>`, host pointers, aligned as `engine_alignment` says
/// @param target      how each layer's rows lie, in bytes, as `import_rows` has it. Bytes of tokens from a head's
/// number
///                    of rows on, and between rows, stay as they are
/// @throws ArgumentError before anything is written, as `import_rows`
/// @note   Deterministic. An engine that has one scale of fp8 for all heads of a layer can read heads that have that
///         one (`AnyFormat::scale`); `transcode` gives them it
/// @par Cost  Each row is read once and written once; all cores with OpenMP
template <class Table, LayerRange Layers, class Target, class Form, class Registry>
void export_rows(Compaction<Table> const& compaction, PackedDestination<Form, Registry> const& kept,
                 Layers const& layers, Target const& target) {
  constexpr auto where = "export_rows";
  auto const engine = layer_span(layers);
  static_assert(!std::is_const_v<LayerElement<Layers>>, "headaware: rows go out into LayerKv<std::byte>");
  detail::check_packed_cache(compaction, kept, "source", where);
  std::int32_t const width =
      detail::check_engine_tensors(detail::bounds_of_rows(compaction), engine, target, kept, "source", where);
  detail::check_tables_of_rows(compaction, target, "export_rows, keys", "export_rows, values");
  detail::move_engine_rows(compaction, engine, target, kept, width,
                           [](Segment const&, std::int64_t begin, std::span<std::int64_t> tokens) {
                             for (std::int64_t& token : tokens) token = begin++;
                           });
}

HEADAWARE_NAMESPACE_END
