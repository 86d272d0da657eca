#pragma once

// The two products of attention over a block of cache rows: scores, and weighted sums of values. Every element of
// the cache is converted in registers.

#include <headaware/attention/detail/simd_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>

#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Cache rows of a block; scores of a query lie side by side.
inline constexpr int attend_block = 64;

/// scores[q][key] = queries[q] · rows[key] for `Queries` queries and lanes / Queries keys: as many sums as a vector
/// has lanes, so that one transposing reduction ends them all.
/// @param queries  [Queries, channels], channels a multiple of lanes
template <int Queries, class Row>
inline void score_keys(float const* queries, Row const* rows, std::int64_t channels, float* scores) {
  constexpr int keys = simd::lanes / Queries;
  simd::Floats sums[simd::lanes];
  for (simd::Floats& sum : sums) sum = simd::Floats{};
  for (std::int64_t c = 0; c < channels; c += simd::lanes) {
    simd::Floats key[std::size_t{keys}];
    for (int k = 0; k < keys; ++k) key[k] = simd::load_floats(rows[k] + c);
    for (int q = 0; q < Queries; ++q) {
      simd::Floats const query = simd::in_register(simd::load(queries + q * channels + c));
      for (int k = 0; k < keys; ++k) sums[q * keys + k] += query * key[k];
    }
  }
  float results[simd::lanes];
  simd::store(results, simd::sums(sums));
  for (int q = 0; q < Queries; ++q) {
    for (int k = 0; k < keys; ++k) scores[q * attend_block + k] = results[q * keys + k];
  }
}

/// Scores of `count` queries against `keys` rows; may write scores beyond, up to the end of the block.
/// @param rows  [attend_block], every entry readable
template <class Row>
inline void score_rows(float const* queries, std::int64_t count, Row const* rows, std::int64_t keys,
                       std::int64_t channels, float* scores) {
  std::int64_t q = 0;
  auto const pass = [&]<int Queries>(std::int64_t first) {
    for (std::int64_t k = 0; k < keys; k += simd::lanes / Queries) {
      score_keys<Queries>(queries + first * channels, rows + k, channels, scores + first * attend_block + k);
    }
  };
  for (; count - q >= 4; q += 4) pass.template operator()<4>(q);
  for (; count - q >= 2; q += 2) pass.template operator()<2>(q);
  for (; count - q >= 1; q += 1) pass.template operator()<1>(q);
}

/// sums[q] += Σ weights[q][key] · rows[key] for `Queries` queries and four keys.
/// @param sums  [Queries, channels], channels a multiple of lanes
template <int Queries, class Row>
inline void weigh_values(float const* weights, Row const* rows, std::int64_t channels, float* sums) {
  constexpr int keys = 4;
  simd::Floats weight[std::size_t{Queries}][keys];
  for (int q = 0; q < Queries; ++q) {
    for (int k = 0; k < keys; ++k) weight[q][k] = simd::broadcast(weights[q * attend_block + k]);
  }
  for (std::int64_t c = 0; c < channels; c += simd::lanes) {
    simd::Floats value[keys];
    for (int k = 0; k < keys; ++k) value[k] = simd::load_floats(rows[k] + c);
    for (int q = 0; q < Queries; ++q) {
      float* const to = sums + q * channels + c;
      simd::Floats sum = simd::load(to);
      for (int k = 0; k < keys; ++k) sum += weight[q][k] * value[k];
      simd::store(to, sum);
    }
  }
}

/// The same for `count` queries and `keys` rows. @param weights  [count, attend_block], 0 beyond `keys`
template <class Row>
inline void weigh_rows(float const* weights, std::int64_t count, Row const* rows, std::int64_t keys,
                       std::int64_t channels, float* sums) {
  auto const pass = [&]<int Queries>(std::int64_t q, std::int64_t k) {
    weigh_values<Queries>(weights + q * attend_block + k, rows + k, channels, sums + q * channels);
  };
  // Sums that the first cache does not hold are not to be fetched for every four rows again.
  std::int64_t q = 0;
  if (count * channels > 8192) {
    for (; count - q >= 4; q += 4) {
      for (std::int64_t k = 0; k < keys; k += 4) pass.template operator()<4>(q, k);
    }
  }
  std::int64_t const first = q;
  for (std::int64_t k = 0; k < keys; k += 4) {
    q = first;
    for (; count - q >= 4; q += 4) pass.template operator()<4>(q, k);
    for (; count - q >= 2; q += 2) pass.template operator()<2>(q, k);
    for (; count - q >= 1; q += 1) pass.template operator()<1>(q, k);
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
