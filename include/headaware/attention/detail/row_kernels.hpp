#pragma once

// The two products of attention over a block of cache rows: scores, and weighted sums of values. Every element of
// the cache is converted in registers.

#include <headaware/attention/detail/simd_rows.hpp>
#include <headaware/config.hpp>
#include <headaware/detail/simd.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// Cache rows of a block; scores of a query lie side by side.
inline constexpr int attend_block = 64;

/// Query rows up to which reading a row's own numbers again costs less than converting it once.
inline constexpr std::int64_t few_queries = 8;

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

/// Calls `pass<n>(q)` for queries in groups of 4, 2 and 1.
template <class Pass>
inline void in_groups(std::int64_t count, Pass const& pass) {
  std::int64_t q = 0;
  for (; count - q >= 4; q += 4) pass.template operator()<4>(q);
  for (; count - q >= 2; q += 2) pass.template operator()<2>(q);
  for (; count - q >= 1; q += 1) pass.template operator()<1>(q);
}

/// Rows whose scores are made at a time.
inline constexpr std::int64_t rows_at_a_time = simd::lanes > 8 ? simd::lanes : 8;

/// Calls `pass<n>(q, k)` for groups of n queries and `Lanes` / n rows that make scores of `count` queries against
/// `keys` rows. @param passed  (first, end of rows) is called after every `rows_at_a_time` of them
template <int Lanes, class Pass, class Passed>
inline void for_score_groups(std::int64_t count, std::int64_t keys, Pass const& pass, Passed const& passed) {
  for (std::int64_t first = 0; first < keys; first += rows_at_a_time) {
    std::int64_t const end = std::min(keys, first + rows_at_a_time);
    in_groups(count, [&]<int Queries>(std::int64_t q) {
      for (std::int64_t k = first; k < end; k += Lanes / Queries) pass.template operator()<Queries>(q, k);
    });
    passed(first, first + rows_at_a_time);
  }
}

/// Scores of `count` queries against `keys` rows; may write scores beyond, up to the end of the block.
/// @param rows    [attend_block], every entry readable
/// @param passed  (first, end of rows) is called after every `rows_at_a_time` of them
template <class Row, class Passed>
inline void score_rows(float const* queries, std::int64_t count, Row const* rows, std::int64_t keys,
                       std::int64_t channels, float* scores, Passed const& passed) {
  auto const pass = [&]<int Queries>(std::int64_t q, std::int64_t k) {
    score_keys<Queries>(queries + q * channels, rows + k, channels, scores + q * attend_block + k);
  };
  for_score_groups<simd::lanes>(count, keys, pass, passed);
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
template <class Row, class Passed>
inline void weigh_rows(float const* weights, std::int64_t count, Row const* rows, std::int64_t keys,
                       std::int64_t channels, float* sums, Passed const& passed) {
  auto const pass = [&]<int Queries>(std::int64_t q, std::int64_t k) {
    weigh_values<Queries>(weights + q * attend_block + k, rows + k, channels, sums + q * channels);
  };
  // Sums that the first cache does not hold are not to be fetched for every four rows again.
  std::int64_t done = 0;
  if (count * channels > 8192) {
    for (; count - done >= 4; done += 4) {
      for (std::int64_t k = 0; k < keys; k += 4) pass.template operator()<4>(done, k);
    }
  }
  for (std::int64_t k = 0; k < keys; k += 4) {
    in_groups(count - done, [&]<int Queries>(std::int64_t q) { pass.template operator()<Queries>(done + q, k); });
    passed(k, k + 4);
  }
}

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
