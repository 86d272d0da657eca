#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/cuda/kernel.cuh>
#include <headaware/detail/cuda/mma.cuh>
#include <headaware/stats/detail/cuda/fetch.cuh>
#include <headaware/stats/detail/cuda/observe_parameters.cuh>
#include <headaware/stats/row_state.hpp>

#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {

/// @brief One block at work on tiles of query rows of one head: 64 rows, or 16 where values are weighed.
///
/// The keys of a tile pass by from the first to the last, 64 at a time. Without values each warp has 16
/// rows and all keys; with values all warps have the same 16 rows, share out the keys of the scores and
/// the channels of the sums. The sums of the slot that passes by are in registers; they move to shared
/// memory when the next slot begins.
/// @tparam ChannelTiles  8-channel tiles of sums a warp has; 0: without values
template <class E, int ChannelTiles, class Parameters>
class ObserveBlock {
  static constexpr bool with_values = ChannelTiles > 0;
  static constexpr int tile_keys = WarpProducts<E>::keys;
  static constexpr int key_warps = with_values ? observe_warps : 1;
  static constexpr int score_tiles = tile_keys / 8 / key_warps;  ///< of a warp
  static constexpr int tile_rows = with_values ? 16 : 64;
  static constexpr std::int32_t never = 0x7fffffff;
  using Products = WarpProducts<E>;

 public:
  __device__ ObserveBlock(Parameters const& parameters, unsigned char* memory, ObserveTensors::Layer const& layer,
                          std::int32_t head)
      : p_(parameters),
        memory_(memory),
        layer_(layer),
        head_(head),
        thread_(static_cast<std::int32_t>(threadIdx.x)),
        warp_(thread_ / warp_threads),
        first_row_(with_values ? 0 : warp_ * 16) {}

  /// Moves on to a chunk, whose raw sums begin with zero.
  __device__ void begin_chunk(std::int64_t chunk) {
    chunk_begin_ = p_.first_token + chunk * p_.chunk_size;
    length_ = static_cast<std::int32_t>(min(p_.chunk_size, p_.tokens - chunk * p_.chunk_size));
    recent_begin_ = static_cast<std::int32_t>(floor(static_cast<double>(length_) * (1 - p_.recent_ratio)));
    for (std::int64_t i = thread_; i < p_.layout.size(); i += observe_threads) raw()[i] = 0;
    __syncthreads();
  }

  [[nodiscard]] __device__ std::int32_t tiles() const {
    std::int32_t const queries =
        length_ <= p_.first_query ? 0 : (length_ - p_.first_query + p_.query_stride - 1) / p_.query_stride;
    return (queries + p_.shared.rows - 1) / p_.shared.rows;
  }

  [[nodiscard]] __device__ double* raw() { return at<double>(p_.shared.raw); }

  /// Adds a tile of rows to the raw sums. Synchronises before and after it writes what others read.
  __device__ void run_tile(std::int32_t tile) {
    first_query_ = static_cast<std::int32_t>(p_.first_query + std::int64_t{tile} * p_.shared.rows * p_.query_stride);
    rows_ = min(p_.shared.rows, (length_ - first_query_ + p_.query_stride - 1) / p_.query_stride);
    last_query_ = query_of(rows_ - 1);
    begin_rows();
    std::int32_t first =
        p_.sliding_window > 0 ? max(0, first_query_ - p_.sliding_window + 1) / tile_keys * tile_keys : 0;
    fetch_rows(
        queries(), p_.query_layout, p_.query_fetch,
        {p_.sequence, head_, chunk_begin_ + first_query_, p_.query_stride, rows_, (p_.shared.rows + 15) / 16 * 16},
        p_.head_dim, p_.shared.channels, p_.shared.pitch, at<E>(p_.shared.queries));
    fetch_keys(first);
    for (; first <= last_query_; first += tile_keys) {
      wait_copies<0>();
      __syncthreads();  // keys are there; nobody needs the last tile's values and weights any more
      if constexpr (with_values) {
        fetch_rows(values(), p_.value_layout, p_.value_fetch, tile_of(first), p_.value_dim, p_.shared.value_dim,
                   p_.shared.value_pitch, at<E>(p_.shared.values));
        commit_copies();
      }
      bool const active = warp_rows_ > 0 && first <= warp_last_query_;
      float scores[score_tiles][4] = {};
      float top[2] = {masked_score, masked_score};
      if (active) score_keys(first, scores, top);
      if constexpr (with_values) {
        if (lane() % 4 == 0) {
          for (int h = 0; h < 2; ++h) tops()[warp_ * 16 + row_of(h)] = top[h];
        }
      }
      __syncthreads();  // nobody needs these keys any more
      if (first + tile_keys <= last_query_) fetch_keys(first + tile_keys);
      if constexpr (with_values) {
        for (int h = 0; h < 2; ++h) {
          for (int w = 0; w < observe_warps; ++w) top[h] = fmaxf(top[h], tops()[w * 16 + row_of(h)]);
        }
      }
      if (active) weigh_keys(first, scores, top);
      if constexpr (with_values) {
        if (first + tile_keys <= last_query_) {
          wait_copies<1>();
        } else {
          wait_copies<0>();
        }
        __syncthreads();  // weights and values are there
        add_values(first, top);
      }
    }
    finish_rows();
  }

 private:
  template <class X>
  [[nodiscard]] __device__ X* at(std::int32_t offset) const {
    return reinterpret_cast<X*>(memory_ + offset);
  }
  [[nodiscard]] __device__ std::int32_t lane() const { return thread_ % warp_threads; }
  [[nodiscard]] __device__ float* tops() const { return at<float>(p_.shared.tops); }
  [[nodiscard]] __device__ float* weights() const { return at<float>(p_.shared.weights); }
  [[nodiscard]] __device__ E const* queries() const { return static_cast<E const*>(layer_.queries); }
  [[nodiscard]] __device__ E const* values() const { return static_cast<E const*>(layer_.values); }
  [[nodiscard]] __device__ bool has_retention() const { return p_.layout.cells > 0; }

  /// The tile's row of this thread's `h`th half of fragments.
  [[nodiscard]] __device__ std::int32_t row_of(int h) const { return first_row_ + lane() / 4 + 8 * h; }
  [[nodiscard]] __device__ std::int32_t query_of(std::int32_t row) const {
    return first_query_ + row * p_.query_stride;
  }
  /// The oldest key that a query sees.
  [[nodiscard]] __device__ std::int32_t oldest_of(std::int32_t query) const {
    return p_.sliding_window > 0 ? max(0, query - p_.sliding_window + 1) : 0;
  }
  /// The first of this warp's keys of a tile.
  [[nodiscard]] __device__ std::int32_t warp_key() const { return with_values ? warp_ * (tile_keys / key_warps) : 0; }

  __device__ void fetch_keys(std::int32_t first) {
    fetch_rows(static_cast<E const*>(layer_.keys), p_.key_layout, p_.key_fetch, tile_of(first), p_.head_dim,
               p_.shared.channels, p_.shared.pitch, at<E>(p_.shared.keys));
    commit_copies();
  }
  /// The tile's keys that some row sees.
  [[nodiscard]] __device__ FetchRows tile_of(std::int32_t first) const {
    return {p_.sequence, head_ / p_.group, chunk_begin_ + first, 1, last_query_ + 1 - first, tile_keys};
  }

  // Slots.

  [[nodiscard]] __device__ std::int32_t slot_begin(std::int32_t slot, std::int32_t row) const {
    return at<std::int32_t>(p_.shared.cuts)[slot * p_.shared.rows + row];
  }
  [[nodiscard]] __device__ std::int32_t slot_end(std::int32_t slot, std::int32_t row) const {
    return slot + 1 < p_.cuts.slots() ? slot_begin(slot + 1, row) : never;
  }
  /// The slot of a key, from a slot that is not behind it on.
  [[nodiscard]] __device__ std::int32_t slot_of(std::int32_t key, std::int32_t row, std::int32_t slot) const {
    while (slot_end(slot, row) <= key) ++slot;
    return slot;
  }

  /// Sorts the cuts of a row: sink sizes and windows, each in order already.
  __device__ void cut_row(std::int32_t row) {
    auto* const cuts = at<std::int32_t>(p_.shared.cuts);
    auto* const sink_slots = at<std::int32_t>(p_.shared.sink_slots);
    auto* const window_slots = at<std::int32_t>(p_.shared.window_slots);
    std::int32_t const rows = p_.shared.rows;
    std::int32_t const query = query_of(row);
    std::int32_t sink = p_.cuts.zero_sinks;
    std::int32_t window = p_.cuts.num_windows - 1;
    cuts[row] = 0;
    if (sink > 0) sink_slots[row] = 0;
    for (std::int32_t slot = 1; slot < p_.cuts.slots(); ++slot) {
      std::int32_t const oldest = window >= 0 ? query - p_.cuts.windows[window] + 1 : never;
      std::int32_t const size = sink < p_.cuts.num_sinks ? p_.cuts.sinks[sink] : never;
      cuts[slot * rows + row] = min(oldest, size);
      if (oldest < size) {
        window_slots[window * rows + row] = slot - 1;
        --window;
      } else {
        sink_slots[sink * rows + row] = slot;
        ++sink;
      }
    }
  }

  __device__ void begin_rows() {
    warp_rows_ = min(16, rows_ - first_row_);
    warp_last_query_ = query_of(first_row_ + warp_rows_ - 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      bool const exists = row_of(h) < rows_;
      query_[h] = exists ? query_of(row_of(h)) : -1;
      oldest_[h] = exists ? oldest_of(query_[h]) : 0;
      max_[h] = sum_max_[h] = masked_score;
      sum_[h] = weighted_[h] = recent_[h] = mass_[h] = 0;
    }
    slot_ = sum_slot_ = low_ = sum_low_ = 0;
    if constexpr (with_values) {
#pragma unroll
      for (int n = 0; n < ChannelTiles; ++n) sums_[n][0] = sums_[n][1] = sums_[n][2] = sums_[n][3] = 0;
    }
    if (!has_retention()) return;
    std::int32_t const entries = p_.cuts.slots() * p_.shared.rows;
    for (std::int32_t i = thread_; i < key_warps * entries; i += observe_threads)
      at<SlotMass>(p_.shared.masses)[i] = {0, masked_score};
    if constexpr (with_values) {
      for (std::int32_t i = thread_; i < observe_warps * entries; i += observe_threads)
        at<float>(p_.shared.sum_max)[i] = masked_score;
      for (std::int32_t i = thread_; i < entries * p_.shared.sum_channels / 4; i += observe_threads)
        at<float4>(p_.shared.sums)[i] = {0, 0, 0, 0};
    }
    for (std::int32_t row = thread_; row < rows_; row += observe_threads) cut_row(row);
  }

  /// This warp's scores of the tile and, of each row, the largest.
  __device__ void score_keys(std::int32_t first, float (&scores)[score_tiles][4], float (&top)[2]) {
    Products::scores(scores, at<E>(p_.shared.queries) + first_row_ * p_.shared.pitch,
                     at<E>(p_.shared.keys) + warp_key() * p_.shared.pitch, p_.shared.pitch, p_.shared.channels);
    std::int32_t const own = first + warp_key() + lane() % 4 * 2;
    std::int32_t const last = first + tile_keys - 1;
    std::int32_t const nearest = query_of(first_row_);
    bool const all_seen = last <= nearest && first >= oldest_of(warp_last_query_);
    bool const some_kept = nearest - last < p_.near || first < p_.sink_size;
#pragma unroll
    for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[n][i] *= p_.scale;
    }
    if (p_.cap > 0) {
#pragma unroll
      for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[n][i] = p_.cap * tanhf(scores[n][i]);
      }
    }
    if (!all_seen || some_kept) {
      auto* const near = at<float>(p_.shared.near);
      auto* const sinks = at<float>(p_.shared.sinks);
#pragma unroll
      for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          std::int32_t const key = own + n * 8 + i % 2;
          std::int32_t const distance = query_[i / 2] - key;
          if (distance < 0 || key < oldest_[i / 2]) {
            scores[n][i] = masked_score;
            continue;
          }
          if (distance < p_.near) near[row_of(i / 2) * p_.near + distance] = scores[n][i];
          if (key < p_.sink_size) sinks[row_of(i / 2) * p_.sink_size + key] = scores[n][i];
        }
      }
    }
#pragma unroll
    for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(~0U, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(~0U, top[h], 2));
    }
  }

  /// Turns scores to weights, relative to the tile's largest scores, and adds them to the rows' states.
  /// A score that is NaN or infinite leaves NaN in `weighted_`.
  __device__ void weigh_keys(std::int32_t first, float (&scores)[score_tiles][4], float const (&top)[2]) {
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      base[h] = top[h] == masked_score ? 0 : top[h];  // no key seen: weights are 0 all the same
    std::int32_t const own = first + warp_key() + lane() % 4 * 2;
    float sum[2] = {0, 0};
    float weighted[2] = {0, 0};
    float recent[2] = {0, 0};
    bool const all_recent = first >= recent_begin_;
    bool const some_recent = !all_recent && first + tile_keys > recent_begin_;
#pragma unroll
    for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float const x = scores[n][i] - base[i / 2];
        float const weight = exp2_fast(x);
        sum[i / 2] += weight;
        weighted[i / 2] += weight * x;
        scores[n][i] = weight;
      }
    }
    if (some_recent) {
#pragma unroll
      for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (own + n * 8 + i % 2 >= recent_begin_) recent[i / 2] += scores[n][i];
      }
    }
    float gain[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const largest = fmaxf(max_[h], top[h]);
      float const keep = exp2_fast(max_[h] - largest);
      gain[h] = exp2_fast(top[h] - largest);
      weighted_[h] =
          keep * (weighted_[h] + (max_[h] - largest) * sum_[h]) + gain[h] * (weighted[h] + (top[h] - largest) * sum[h]);
      sum_[h] = keep * sum_[h] + gain[h] * sum[h];
      recent_[h] = keep * recent_[h] + gain[h] * (all_recent ? sum[h] : recent[h]);
      mass_[h] *= keep;
      max_[h] = largest;
    }
    if (has_retention()) add_masses(first + warp_key(), own, scores, sum, gain);
    if constexpr (with_values) {
#pragma unroll
      for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float2*>(weights() + row_of(h) * weight_pitch + warp_key() + n * 8 + lane() % 4 * 2) = {
              scores[n][2 * h], scores[n][2 * h + 1]};
        }
      }
    }
  }

  /// The keys of each slot, [begin, end), of this thread's two rows.
  [[nodiscard]] __device__ KeyRanges ranges_of(std::int32_t slot, std::int32_t origin) const {
    KeyRanges ranges;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::int32_t const row = min(row_of(h), rows_ - 1);  // rows behind the last weigh nothing
      ranges.begin[h] = slot_begin(slot, row) - origin;
      ranges.end[h] = slot_end(slot, row) - origin;
    }
    return ranges;
  }

  /// Sorts the weights of this warp's keys into slots. @param own  this thread's first key
  __device__ void add_masses(std::int32_t first, std::int32_t own, float const (&weights)[score_tiles][4],
                             float const (&sum)[2], float const (&gain)[2]) {
    if (first > warp_last_query_) return;
    // At a key the row farthest ahead has the lowest slot.
    std::int32_t const low = low_ = slot_of(first, first_row_ + warp_rows_ - 1, low_);
    std::int32_t const high = slot_of(min(first + score_tiles * 8 - 1, warp_last_query_), first_row_, low);
    for (std::int32_t slot = low; slot <= high; ++slot) {
      if (slot != slot_) {
        store_masses();
        slot_ = slot;
      }
      if (low == high) {
        mass_[0] += gain[0] * sum[0];
        mass_[1] += gain[1] * sum[1];
        break;
      }
      KeyRanges const ranges = ranges_of(slot, own);
      float part[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < score_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (ranges.has(i / 2, n * 8 + i % 2)) part[i / 2] += weights[n][i];
      }
      mass_[0] += gain[0] * part[0];
      mass_[1] += gain[1] * part[1];
    }
  }

  /// Adds the mass in registers to its slot.
  __device__ void store_masses() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float mass = mass_[h];
      mass += __shfl_xor_sync(~0U, mass, 1);
      mass += __shfl_xor_sync(~0U, mass, 2);
      mass_[h] = 0;
      if (lane() % 4 == 0 && row_of(h) < rows_) {
        std::int32_t const key_warp = with_values ? warp_ : 0;
        SlotMass& to =
            at<SlotMass>(p_.shared.masses)[(key_warp * p_.cuts.slots() + slot_) * p_.shared.rows + row_of(h)];
        to = {to.sum * exp2_fast(to.max - max_[h]) + mass, max_[h]};
      }
    }
  }

  /// The sum of a slot: channels are swapped in groups of 8, by row, so that fragments meet different banks.
  [[nodiscard]] __device__ float* sum_at(std::int32_t slot, std::int32_t row, std::int32_t channel) const {
    return at<float>(p_.shared.sums) + (slot * p_.shared.rows + row) * p_.shared.sum_channels +
           (channel ^ (row % 4 * 8));
  }

  /// Adds weights · values of the tile, slot by slot, to this warp's channels. Sums are relative to the slot's
  /// own largest score, as a slot of little weight is all that some windows keep.
  /// @param top  the rows' largest scores of the tile
  __device__ void add_values(std::int32_t first, float const (&top)[2]) {
    std::int32_t const last_row = rows_ - 1;
    std::int32_t const last_key = min(first + tile_keys - 1, last_query_);
    std::int32_t const low = sum_low_ = slot_of(first, last_row, sum_low_);
    std::int32_t const high = slot_of(last_key, 0, low);
    for (std::int32_t slot = low; slot <= high; ++slot) {
      if (slot != sum_slot_) {
        store_sums();
        sum_slot_ = slot;
      }
      std::int32_t const begin = max(first, slot_begin(slot, 0)) - first;
      std::int32_t const end = min(last_key + 1, slot_end(slot, last_row)) - first;
      if (begin >= end) continue;
      KeyRanges ranges = ranges_of(slot, first + begin / 16 * 16);
      if (low == high) {
        rise(top, top);
        add_keys<false>(begin, end, ranges);
      } else {
        float slot_top[2];
        find_tops(begin, end, ranges, top, slot_top);
        rise(top, slot_top);
        add_keys<true>(begin, end, ranges);
      }
    }
  }

  /// The largest scores of a slot's keys in the tile. @param ranges  counted from `begin`, rounded down
  __device__ void find_tops(std::int32_t begin, std::int32_t end, KeyRanges ranges, float const (&top)[2],
                            float (&slot_top)[2]) const {
    float largest[2] = {0, 0};
    for (std::int32_t key = begin / 16 * 16; key < end; key += 16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float2 const weight = pair_of_weights<true>(weights() + key, i % 2, i / 2 * 8, ranges);
        largest[i % 2] = fmaxf(largest[i % 2], fmaxf(weight.x, weight.y));
      }
      ranges.move(16);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0U, largest[h], 1));
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0U, largest[h], 2));
      slot_top[h] = largest[h] > 0 ? top[h] + log2f(largest[h]) : masked_score;
    }
  }

  /// Makes room in the sums for scores up to `slot_top`; `sum_scale_` turns the tile's weights to theirs.
  __device__ void rise(float const (&top)[2], float const (&slot_top)[2]) {
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float const largest = fmaxf(sum_max_[h], slot_top[h]);
      shrink[h] = exp2_fast(sum_max_[h] - largest);
      sum_scale_[h] = slot_top[h] == masked_score ? 0 : exp2_fast(top[h] - largest);
      sum_max_[h] = largest;
    }
    if (!__any_sync(~0U, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
    for (int n = 0; n < ChannelTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[n][i] *= shrink[i / 2];
    }
  }

  template <bool Masked>
  __device__ void add_keys(std::int32_t begin, std::int32_t end, KeyRanges ranges) {
    for (std::int32_t key = begin / 16 * 16; key < end; key += 16) {
      Products::template accumulate<ChannelTiles, Masked>(
          sums_, weights() + key, sum_scale_, at<E>(p_.shared.values) + key * p_.shared.value_pitch,
          p_.shared.value_pitch, ranges, warp_, observe_warps, p_.shared.value_dim);
      ranges.move(16);
    }
  }

  /// Adds the sums in registers to their slot and begins anew.
  __device__ void store_sums() {
    float* const sum_max = at<float>(p_.shared.sum_max) + (warp_ * p_.cuts.slots() + sum_slot_) * p_.shared.rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      bool const exists = row_of(h) < rows_;
      float const before = exists ? sum_max[row_of(h)] : masked_score;
      float const largest = fmaxf(before, sum_max_[h]);
      float const keep = exp2_fast(before - largest);
      float const gain = exp2_fast(sum_max_[h] - largest);
      __syncwarp();
      if (exists) {
        if (lane() % 4 == 0) sum_max[row_of(h)] = largest;
#pragma unroll
        for (int n = 0; n < ChannelTiles; ++n) {
          std::int32_t const channel = channel_of(n);
          if (channel >= p_.shared.value_dim) break;
          auto* const to = reinterpret_cast<float2*>(sum_at(sum_slot_, row_of(h), channel));
          *to = {to->x * keep + sums_[n][2 * h] * gain, to->y * keep + sums_[n][2 * h + 1] * gain};
        }
      }
      sum_max_[h] = masked_score;
    }
#pragma unroll
    for (int n = 0; n < ChannelTiles; ++n) sums_[n][0] = sums_[n][1] = sums_[n][2] = sums_[n][3] = 0;
  }
  /// This thread's first channel of tile n of its fragments.
  [[nodiscard]] __device__ std::int32_t channel_of(int n) const {
    return (warp_ + n / 2 * observe_warps) * 16 + n % 2 * 8 + lane() % 4 * 2;
  }

  // What is made of the rows when their keys have passed.

  __device__ void finish_rows() {
    std::int32_t const rows = p_.shared.rows;
    if (warp_rows_ > 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        RowPart part{max_[h], sum_[h], weighted_[h], recent_[h]};
        for (int step = 1; step < 4; step *= 2) {
          part.sum += __shfl_xor_sync(~0U, part.sum, step);
          part.weighted += __shfl_xor_sync(~0U, part.weighted, step);
          part.recent += __shfl_xor_sync(~0U, part.recent, step);
        }
        if (lane() % 4 == 0 && row_of(h) < rows_)
          at<RowPart>(p_.shared.row_parts)[(with_values ? warp_ : 0) * rows + row_of(h)] = part;
      }
      if (has_retention()) store_masses();
      if constexpr (with_values) store_sums();
    }
    __syncthreads();
    // Of the tile's keys nobody needs any more: scratch for sums over rows.
    auto* const scalars = at<double>(p_.shared.keys);
    if (thread_ < rows_) finish_row(thread_, scalars);
    __syncthreads();
    double* const near = scalars + row_scalars * rows;
    double* const sinks = near + p_.near;
    if (thread_ < row_scalars) {
      constexpr std::int32_t fields[row_scalars] = {
          SumsLayout::rows,          SumsLayout::invalid_rows, SumsLayout::chunks,     SumsLayout::entropy,
          SumsLayout::max_attention, SumsLayout::recent,       SumsLayout::uniformity, SumsLayout::retention_rows};
      std::int32_t field = 0;
#pragma unroll
      for (int f = 0; f < row_scalars; ++f)
        if (thread_ == f) field = fields[f];
      double sum = 0;
      for (std::int32_t row = 0; row < rows_; ++row) sum += scalars[thread_ * rows + row];
      raw()[field] += sum;
      if (with_values && thread_ == row_scalars - 1) {
        raw()[SumsLayout::retention_value_rows] += sum;
        if (layer_.output_factors != nullptr) raw()[SumsLayout::retention_metric_rows] += sum;
      }
    }
    for (std::int32_t d = thread_; d < p_.near; d += observe_threads) {
      near[d] =
          sum_probabilities(at<float>(p_.shared.near) + d, p_.near, [&](std::int32_t query) { return query - d; });
      if (d < p_.layout.num_distances) raw()[p_.layout.distances() + d] += near[d];
    }
    for (std::int32_t k = thread_; k < p_.sink_size; k += observe_threads)
      sinks[k] = sum_probabilities(at<float>(p_.shared.sinks) + k, p_.sink_size, [&](std::int32_t) { return k; });
    if (has_retention()) {
      for (std::int32_t sink = warp_; sink < p_.cuts.num_sinks; sink += observe_warps) sum_masses(sink);
    }
    if constexpr (with_values) {
      finish_values(p_.layout.error_squared(), SumsLayout::output_squared);
      if (layer_.output_factors != nullptr) {
        apply_output_factor();
        finish_values(p_.layout.metric_error_squared(), SumsLayout::output_metric_squared);
      }
    }
    __syncthreads();
    if (thread_ == 0) {
      double local = 0;
      for (std::int32_t d = 0; d <= p_.local_window; ++d) local += near[d];
      raw()[SumsLayout::local] += local;
      double sink = 0;
      for (std::int32_t k = 0; k < p_.sink_size; ++k) sink += sinks[k];
      raw()[SumsLayout::sink] += sink;
    }
    __syncthreads();
  }

  /// One row's own values, and the probabilities of its slots. @param scalars  [row_scalars, rows]
  __device__ void finish_row(std::int32_t row, double* scalars) {
    std::int32_t const rows = p_.shared.rows;
    auto const* const parts = at<RowPart>(p_.shared.row_parts) + row;
    RowState all;
    double recent = 0;
    bool finite = true;
    for (int w = 0; w < key_warps; ++w) {
      RowPart const& part = parts[w * rows];
      finite = finite && isfinite(part.weighted) && isfinite(part.sum);
      all.merge({part.max, part.sum, part.weighted});
      recent += part.recent;
    }
    bool const valid = finite && all.sum > 0;
    double const entropy = valid ? all.entropy() : 0;
    std::int32_t const query = query_of(row);
    double const own[row_scalars] = {
        valid ? 1.0 : 0.0,
        valid ? 0.0 : 1.0,
        valid && query > 0 ? 1.0 : 0.0,
        entropy,
        valid ? all.max_probability() : 0,
        valid ? recent / all.sum : 0,
        valid && query > 0 ? log(static_cast<double>(query + 1)) - entropy : 0,
        valid && has_retention() ? 1.0 : 0.0,
    };
#pragma unroll
    for (int v = 0; v < row_scalars; ++v) scalars[v * rows + row] = own[v];
    auto const inverse = static_cast<float>(valid ? 1 / all.sum : 0);
    at<float>(p_.shared.row_max)[row] = all.max;
    at<float>(p_.shared.row_inverse)[row] = inverse;
    if (!has_retention()) return;
    std::int32_t const slots = p_.cuts.slots();
    auto* const shares = at<float>(p_.shared.shares) + row;
    for (std::int32_t slot = 0; slot < slots; ++slot) {
      float share = 0;
      for (int w = 0; w < key_warps; ++w) {
        SlotMass const mass = at<SlotMass>(p_.shared.masses)[(w * slots + slot) * rows + row];
        share += mass.sum * exp2_fast(mass.max - all.max);
      }
      shares[slot * rows] = share * inverse;
    }
    if constexpr (with_values) {
      auto* const before = at<float>(p_.shared.kept_before) + row;
      auto* const after = at<float>(p_.shared.kept_after) + row;
      before[0] = after[slots * rows] = 0;
      for (std::int32_t slot = 0; slot < slots; ++slot) {
        before[(slot + 1) * rows] = before[slot * rows] + shares[slot * rows];
        std::int32_t const back = slots - 1 - slot;
        after[back * rows] = after[(back + 1) * rows] + shares[back * rows];
        at<float>(p_.shared.sum_factors)[slot * rows + row] =
            exp2_fast(at<float>(p_.shared.sum_max)[slot * rows + row] - all.max) * inverse;
      }
    }
  }

  /// Σ over rows of the probability of one key each, by its score. @param key_of  which key of a query
  template <class KeyOf>
  [[nodiscard]] __device__ double sum_probabilities(float const* scores, std::int32_t pitch,
                                                    KeyOf const& key_of) const {
    double sum = 0;
    for (std::int32_t row = 0; row < rows_; ++row) {
      std::int32_t const query = query_of(row);
      std::int32_t const key = key_of(query);
      float const inverse = at<float>(p_.shared.row_inverse)[row];
      if (inverse == 0 || key > query || key < oldest_of(query)) continue;
      sum += static_cast<double>(exp2_fast(scores[row * pitch] - at<float>(p_.shared.row_max)[row]) * inverse);
    }
    return sum;
  }

  [[nodiscard]] __device__ std::int32_t sink_slot(std::int32_t sink, std::int32_t row) const {
    return at<std::int32_t>(p_.shared.sink_slots)[sink * p_.shared.rows + row];
  }
  [[nodiscard]] __device__ std::int32_t window_slot(std::int32_t window, std::int32_t row) const {
    return at<std::int32_t>(p_.shared.window_slots)[window * p_.shared.rows + row];
  }

  /// The masses that all windows beside a sink size drop: a warp at work, every lane for a row of 32.
  __device__ void sum_masses(std::int32_t sink) {
    constexpr int own = (tile_rows + warp_threads - 1) / warp_threads;
    auto const* const shares = at<float>(p_.shared.shares);
    std::int32_t next[own];
    float mass[own] = {};
    bool counts[own];
#pragma unroll
    for (int i = 0; i < own; ++i) {
      std::int32_t const row = lane() + i * warp_threads;
      counts[i] = row < rows_ && at<float>(p_.shared.row_inverse)[row] != 0;
      if (counts[i]) next[i] = sink_slot(sink, row);
    }
    for (std::int32_t window = p_.cuts.num_windows - 1; window >= 0; --window) {
      float sum = 0;
      float squares = 0;
#pragma unroll
      for (int i = 0; i < own; ++i) {
        if (!counts[i]) continue;
        std::int32_t const row = lane() + i * warp_threads;
        std::int32_t const last = window_slot(window, row);
        for (; next[i] <= last; ++next[i]) mass[i] += shares[next[i] * p_.shared.rows + row];
        sum += mass[i];
        squares += mass[i] * mass[i];
      }
#pragma unroll
      for (int step = 1; step < warp_threads; step *= 2) {
        sum += __shfl_xor_sync(~0U, sum, step);
        squares += __shfl_xor_sync(~0U, squares, step);
      }
      if (lane() == 0) {
        std::int32_t const cell = p_.cuts.cell(sink, window);
        raw()[p_.layout.mass() + cell] += static_cast<double>(sum);
        raw()[p_.layout.mass_squared() + cell] += static_cast<double>(squares);
      }
    }
  }

  // Errors of outputs: 8 lanes have a row, 4 channels in every 32 each.

  static constexpr int own_channels = ChannelTiles * 4;
  struct Channels {
    float at[with_values ? own_channels : 1];
  };

  __device__ void add_slot(Channels& to, std::int32_t slot, std::int32_t row) const {
    float const factor = at<float>(p_.shared.sum_factors)[slot * p_.shared.rows + row];
    float const* const sums = sum_at(slot, row, lane() % 8 * 4);
#pragma unroll
    for (int n = 0; n < ChannelTiles; ++n) {
      if (n * 32 >= p_.shared.sum_channels) break;
      float4 const sum = *reinterpret_cast<float4 const*>(sums + n * 32);
      to.at[4 * n] += factor * sum.x;
      to.at[4 * n + 1] += factor * sum.y;
      to.at[4 * n + 2] += factor * sum.z;
      to.at[4 * n + 3] += factor * sum.w;
    }
  }

  /// |a · x - b · y|² of a row, in all its lanes.
  [[nodiscard]] __device__ static float squared_difference(float a, Channels const& x, float b, Channels const& y) {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < own_channels; ++c) {
      float const difference = a * x.at[c] - b * y.at[c];
      sum += difference * difference;
    }
#pragma unroll
    for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(~0U, sum, step);
    return sum;
  }
  /// Σ over the warp's rows of a value that all lanes of a row have.
  [[nodiscard]] __device__ static float sum_rows(float value) {
    value += __shfl_xor_sync(~0U, value, 8);
    value += __shfl_xor_sync(~0U, value, 16);
    return value;
  }

  /// Adds Σ |Δ|² of every cell and Σ |o|² to the raw sums.
  __device__ void finish_values(std::int64_t errors, std::int32_t output) {
    std::int32_t const cells = p_.cuts.num_sinks * p_.cuts.num_windows;
    double* const scratch = at<double>(p_.shared.values);  // [warps, cells + 1]
    double* const own = scratch + warp_ * (cells + 1);
    // Lanes of rows that do not exist do as the last row does, and count for nothing.
    std::int32_t const row = min(warp_ * 4 + lane() / 8, rows_ - 1);
    bool const counts = warp_ * 4 + lane() / 8 < rows_ && at<float>(p_.shared.row_inverse)[row] != 0;
    std::int32_t const slots = p_.cuts.slots();
    auto const* const shares = at<float>(p_.shared.shares) + row;
    auto const* const before = at<float>(p_.shared.kept_before) + row;
    auto const* const after = at<float>(p_.shared.kept_after) + row;
    std::int32_t const rows = p_.shared.rows;
    Channels whole{};
    for (std::int32_t slot = 0; slot < slots; ++slot) add_slot(whole, slot, row);
    Channels const nothing{};
    float const whole_squared = squared_difference(1, whole, 0, nothing);
    float const squared = sum_rows(counts ? whole_squared : 0);
    if (lane() == 0) own[cells] = static_cast<double>(squared);

    for (std::int32_t sink = 0; sink < p_.cuts.num_sinks; ++sink) {
      std::int32_t const begin = sink_slot(sink, row);
      double* const sink_cells = own + sink * p_.cuts.num_windows;
      // From the largest window on, as long as less than half is dropped: Δ = (m·o - u) / (1 - m).
      Channels part{};
      float mass = 0;
      std::int32_t next = begin;
      std::int32_t half = -1;  // the largest window that drops half and more
      for (std::int32_t window = p_.cuts.num_windows - 1; window >= 0; --window) {
        std::int32_t const last = window_slot(window, row);
        for (; next <= last; ++next) {
          add_slot(part, next, row);
          mass += shares[next * rows];
        }
        bool const dropped = half < 0 && mass < 0.5F;
        if (!dropped && half < 0) half = window;
        float sum = 0;
        if (__any_sync(~0U, dropped)) {
          float const kept = last < begin ? 1 : before[begin * rows] + after[(last + 1) * rows];
          float const factor = dropped ? 1 / kept : 0;
          float const error = squared_difference(mass * factor, whole, factor, part);
          sum = sum_rows(counts && dropped ? error : 0);
        }
        if (lane() == 0) sink_cells[window] = static_cast<double>(sum);
      }
      // The rest from what is kept, for precision: Δ = u / Z - o.
      if (!__any_sync(~0U, half >= 0 && counts)) continue;
      part = Channels{};
      for (std::int32_t slot = 0; slot < begin; ++slot) add_slot(part, slot, row);
      std::int32_t first = slots;
      for (std::int32_t window = 0; window < p_.cuts.num_windows; ++window) {
        bool const dropped = window <= half;
        if (!__any_sync(~0U, dropped && counts)) break;
        std::int32_t const last = window_slot(window, row);
        while (first > max(last + 1, begin)) add_slot(part, --first, row);
        // A row that keeps nothing of weight outputs zero.
        float const kept = before[begin * rows] + after[(last + 1) * rows];
        float const error = squared_difference(kept > 0 ? fminf(1 / kept, 3e38F) : 0, part, 1, whole);
        float const sum = sum_rows(counts && dropped ? error : 0);
        if (lane() == 0) sink_cells[window] += static_cast<double>(sum);
      }
    }
    __syncthreads();
    for (std::int32_t i = thread_; i <= cells; i += observe_threads) {
      double sum = 0;
      for (int w = 0; w < observe_warps; ++w) sum += scratch[w * (cells + 1) + i];
      if (i == cells) {
        raw()[output] += sum;
      } else {
        raw()[errors + p_.cuts.cell(i / p_.cuts.num_windows, i % p_.cuts.num_windows)] += sum;
      }
    }
    __syncthreads();
  }

  /// Replaces the sums x of all slots by R x, some slots at once, so that R is read less often.
  __device__ void apply_output_factor() {
    constexpr int at_once = ChannelTiles == 8 ? 2 : 4;
    float const* const matrix = layer_.output_factors + std::int64_t{head_} * p_.value_dim * p_.value_dim;
    std::int32_t const rows[2] = {min(row_of(0), rows_ - 1), min(row_of(1), rows_ - 1)};
    std::int32_t const last_slot = p_.cuts.slots() - 1;
    for (std::int32_t first = 0; first <= last_slot; first += at_once) {
      float product[at_once][ChannelTiles][4] = {};
      for (std::int32_t c = 0; c < p_.value_dim; ++c) {
        float x[at_once][2];
#pragma unroll
        for (int s = 0; s < at_once; ++s) {
#pragma unroll
          for (int h = 0; h < 2; ++h) x[s][h] = *sum_at(min(first + s, last_slot), rows[h], c);
        }
#pragma unroll
        for (int n = 0; n < ChannelTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            std::int32_t const channel = channel_of(n) + i;
            float const factor = channel < p_.value_dim ? matrix[channel * p_.value_dim + c] : 0;
#pragma unroll
            for (int s = 0; s < at_once; ++s) {
              product[s][n][i] += factor * x[s][0];
              product[s][n][2 + i] += factor * x[s][1];
            }
          }
        }
      }
      __syncthreads();
#pragma unroll
      for (int s = 0; s < at_once; ++s) {
#pragma unroll
        for (int n = 0; n < ChannelTiles; ++n) {
          if (first + s > last_slot || channel_of(n) >= p_.shared.value_dim) break;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            if (row_of(h) < rows_)
              *reinterpret_cast<float2*>(sum_at(first + s, row_of(h), channel_of(n))) = {product[s][n][2 * h],
                                                                                         product[s][n][2 * h + 1]};
          }
        }
      }
    }
    __syncthreads();
  }

  Parameters const& p_;
  unsigned char* memory_;
  ObserveTensors::Layer layer_;
  std::int32_t head_;
  std::int32_t thread_;
  std::int32_t warp_;
  std::int32_t first_row_;  ///< of this warp
  std::int64_t chunk_begin_ = 0;
  std::int32_t length_ = 0;        ///< of the chunk
  std::int32_t recent_begin_ = 0;  ///< first key of the chunk's recent part
  std::int32_t first_query_ = 0;   ///< of the tile
  std::int32_t last_query_ = 0;
  std::int32_t rows_ = 0;       ///< of the tile
  std::int32_t warp_rows_ = 0;  ///< of them this warp's; not positive: none
  std::int32_t warp_last_query_ = 0;
  std::int32_t slot_ = 0;      ///< whose mass is in registers
  std::int32_t sum_slot_ = 0;  ///< whose sums are
  std::int32_t low_ = 0;       ///< the slot of this warp's first key of the last tile
  std::int32_t sum_low_ = 0;   ///< the slot of the last tile's first key
  std::int32_t query_[2]{};
  std::int32_t oldest_[2]{};
  float max_[2]{};
  float sum_[2]{};
  float weighted_[2]{};
  float recent_[2]{};
  float mass_[2]{};
  float sums_[with_values ? ChannelTiles : 1][4]{};  ///< of weights 2^(score - sum_max_)
  float sum_max_[2]{};
  float sum_scale_[2]{};
};

/// Adds up the partial sums of a head in order, by its last block.
template <class Parameters>
__device__ void combine_partials(Parameters const& p, double const* partials, double* raw, double* sums) {
  std::int64_t const size = p.layout.size();
  for (std::int32_t group = 0; group < p.grid.groups; ++group) {
    for (std::int64_t i = threadIdx.x; i < size; i += observe_threads) {
      double sum = 0;
      for (std::int32_t part = 0; part < p.grid.parts; ++part)
        sum += __ldcg(partials + (std::int64_t{group} * p.grid.parts + part) * size + i);
      raw[i] = sum;
    }
    __syncthreads();
    // With several parts, groups are chunks, whose means are still to be taken.
    for (std::int64_t i = threadIdx.x; i < size; i += observe_threads)
      sums[i] += p.grid.parts == 1 ? raw[i] : chunk_entry(raw, i, p.layout);
    __syncthreads();
  }
}

/// Grid: x heads of all blocks of a head, y layers. The last block of a head adds up its sums.
/// Needs compute capability 8.0: matrix products of 16 rows, asynchronous copies.
template <class E, int ChannelTiles, class Parameters>
HEADAWARE_KERNEL void __launch_bounds__(observe_threads, 1)
    observe_kernel(Parameters const __grid_constant__ parameters, ObserveTensors const __grid_constant__ tensors) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(16) unsigned char observe_memory[];
  auto const& p = share_parameters(parameters, *reinterpret_cast<SharedStorage<Parameters>*>(observe_memory));
  auto const head = static_cast<std::int32_t>(blockIdx.x) % p.num_query_heads;
  std::int32_t const block = static_cast<std::int32_t>(blockIdx.x) / p.num_query_heads;
  std::int64_t const size = p.layout.size();
  std::int64_t const index = std::int64_t{blockIdx.y} * p.num_query_heads + head;
  double* const partials = p.partials + index * p.grid.blocks() * size;
  double* const partial = partials + block * size;

  ObserveBlock<E, ChannelTiles, Parameters> work(p, observe_memory, tensors.layers[blockIdx.y], head);
  std::int32_t const group = block / p.grid.parts;
  std::int32_t const part = block % p.grid.parts;
  std::int64_t const first = p.grid.chunks * group / p.grid.groups;
  std::int64_t const end = p.grid.chunks * (group + 1) / p.grid.groups;
  for (std::int64_t chunk = first; chunk < end; ++chunk) {
    work.begin_chunk(chunk);
    std::int32_t const tiles = work.tiles();
    // Dealt out forth and back, as tiles grow.
    for (std::int32_t round = 0;; ++round) {
      std::int32_t const tile = round * p.grid.parts + (round % 2 == 0 ? part : p.grid.parts - 1 - part);
      if (round * p.grid.parts >= tiles) break;
      if (tile < tiles) work.run_tile(tile);
    }
    for (std::int64_t i = threadIdx.x; i < size; i += observe_threads) {
      double const entry = p.grid.parts == 1 ? chunk_entry(work.raw(), i, p.layout) : work.raw()[i];
      partial[i] = chunk == first ? entry : partial[i] + entry;
    }
    __syncthreads();
  }

  __threadfence();
  __syncthreads();
  auto& last = *reinterpret_cast<std::int32_t*>(work.raw());
  if (threadIdx.x == 0)
    last = atomicAdd(p.tickets + index, 1U) + 1 == static_cast<std::uint32_t>(p.grid.blocks()) ? 1 : 0;
  __syncthreads();
  bool const combines = last != 0;
  __syncthreads();
  if (!combines) return;
  __threadfence();
  combine_partials(p, partials, work.raw(), p.sums + index * size);
#else
  __trap();  // the host has refused such devices; their code only has to compile
#endif
}

}  // namespace detail
HEADAWARE_NAMESPACE_END
