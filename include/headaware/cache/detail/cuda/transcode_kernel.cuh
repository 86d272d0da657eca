#pragma once

// Rows of a packed cache written in other formats: a thread has 64 channels of a key or a value, which it decodes and
// encodes by the code of the CPU, so that every bit is the CPU's.

#include <headaware/cache/detail/cuda/pack_kernel.cuh>
#include <headaware/cache/layer_channels.hpp>
#include <headaware/cache/transcode_plan.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/format/encode_block.cuh>
#include <headaware/format/hadamard.hpp>
#include <headaware/format/table.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// Channels of a thread: the largest group of the registry's formats, of which those of the others are parts.
template <class Registry>
struct TranscodeChunk;
template <class... Formats>
struct TranscodeChunk<FormatRegistry<Formats...>> {
  static constexpr std::int32_t channels = [] {
    std::int32_t most = 1;
    ((most = Formats::group > most ? Formats::group : most), ...);
    return most;
  }();
  static_assert(((channels % Formats::group == 0) && ...),
                "headaware: groups of formats to transcode on a device divide the largest one");
};

template <class Reg, class FromForm, class ToForm>
struct TranscodeParameters {
  using Registry = Reg;

  TranscodeSegment<Registry> const* segments;
  std::int64_t num_segments;
  std::int64_t num_rows;
  RowChannels channels;
  std::int32_t key_chunks;
  std::int32_t row_chunks;  ///< of keys and values
  FromForm from_form;
  ToForm to_form;
  RowUnit const* from[max_layers];
  RowUnit* to[max_layers];
};

/// Writes channels [first, first + chunk) of a key or a value in another format.
template <class Registry>
__device__ __forceinline__ void transcode_chunk(AnyFormat<Registry> const& from, std::uint32_t const* words,
                                                AnyFormat<Registry> const& to, std::uint32_t* out, bool same,
                                                std::int64_t channels, std::int64_t first) {
  constexpr std::int32_t chunk = TranscodeChunk<Registry>::channels;
  if (same) {
    from.visit([&]<class Format>(Format const&) {
      std::int64_t const begin = first / Format::group * Format::block_words;
      std::int64_t const end = begin + chunk / Format::group * Format::block_words;
      std::int64_t const last = row_words<Format>(channels);
      for (std::int64_t w = begin; w < (end < last ? end : last); ++w) out[w] = words[w];
    });
    return;
  }
  float x[chunk];
  from.visit([&]<class Format>(Format const& format) {
#pragma unroll
    for (std::int32_t i = 0; i < chunk; i += Format::group) {
      if (first + i < channels) {
        float block[Format::group];
        format.decode(words + (first + i) / Format::group * Format::block_words, block);
        if constexpr (Format::rotated) rotate_block<Format::group>(block);
#pragma unroll
        for (std::int32_t j = 0; j < Format::group; ++j) x[i + j] = first + i + j < channels ? block[j] : 0.0F;
      } else {
#pragma unroll
        for (std::int32_t j = 0; j < Format::group; ++j) x[i + j] = 0.0F;
      }
    }
  });
  to.visit([&]<class Format>(Format const& format) {
#pragma unroll
    for (std::int32_t i = 0; i < chunk; i += Format::group) {
      if (first + i >= channels) continue;
      if constexpr (Format::rotated) rotate_block<Format::group>(x + i);
      format.encode(x + i, out + (first + i) / Format::group * Format::block_words);
    }
  });
}

template <class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(pack_threads) transcode_kernel(Parameters const __grid_constant__ p) {
  using Registry = typename Parameters::Registry;
  constexpr std::int32_t chunk = TranscodeChunk<Registry>::channels;
  std::int64_t const thread = std::int64_t{blockIdx.x} * pack_threads + threadIdx.x;
  std::int64_t const row_of_all = thread / p.row_chunks;
  if (row_of_all >= p.num_rows) return;
  auto const index = static_cast<std::int32_t>(thread - row_of_all * p.row_chunks);
  auto const& segment = segment_of(p.segments, p.num_segments, &TranscodeSegment<Registry>::first_row, row_of_all);
  std::int64_t const row = row_of_all - segment.first_row;
  auto const unit = [&](auto const& form, auto const& rows) {
    return unit_of_row(form, segment, rows.first_unit, rows.units, row);
  };
  std::uint32_t const* const words = (p.from[segment.layer] + unit(p.from_form, segment.from))->words;
  std::uint32_t* const out = (p.to[segment.layer] + unit(p.to_form, segment.to))->words;
  auto const& from = segment.from.formats;
  auto const& to = segment.to.formats;
  // One call, which is inlined: calls save registers on the stack.
  bool const is_key = index < p.key_chunks;
  RowChannels const channels = p.channels;
  transcode_chunk(is_key ? from.key : from.value, words + (is_key ? 0 : from.key_words(channels.head_dim)),
                  is_key ? to.key : to.value, out + (is_key ? 0 : to.key_words(channels.head_dim)),
                  is_key ? segment.same_key : segment.same_value, is_key ? channels.head_dim : channels.value_dim,
                  std::int64_t{is_key ? index : index - p.key_chunks} * chunk);
  if (index == p.row_chunks - 1) clear_row_end(to, channels.head_dim, channels.value_dim, segment.to.units, out);
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
