#pragma once

// Heads that hold different numbers of random rows, laid out in every form that attention reads, and attention over
// them in plain double-precision loops that know nothing of forms.

#include "support/catch.hpp"
#include "support/table_upload.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/element.hpp>
#include <headaware/layout/strided.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace headaware_test {

namespace ha = headaware;

template <class T>
std::size_t at(T index) {
  return static_cast<std::size_t>(index);
}

/// Numbers as an element type holds them.
template <class T>
std::vector<T> random_elements(std::int64_t count, unsigned seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> result(at(count));
  for (T& x : result) x = ha::from_float<T>(spread * normal(random));
  return result;
}

/// What one head of one sequence holds.
template <class T>
struct HeldRows {
  std::vector<T> keys;                  ///< [rows, head_dim]
  std::vector<T> values;                ///< [rows, value_dim]
  std::vector<std::int32_t> positions;  ///< [rows], the token of each row
};

/// Queries and what the heads hold.
template <class T>
struct HeldProblem {
  ha::AttentionShape shape;
  ha::AttentionOptions options;
  std::vector<std::int32_t> first_positions;  ///< [sequences]; empty: no mask
  std::vector<float> sinks;                   ///< [num_query_heads]; empty: none
  std::vector<float> queries;                 ///< [sequences, num_query_heads, query_tokens, head_dim]
  std::vector<HeldRows<T>> segments;

  /// @param rows  of each segment; row i is token i
  HeldProblem(ha::AttentionShape const& of, std::vector<std::int64_t> const& rows, unsigned seed) : shape(of) {
    queries = random_elements<float>(
        std::int64_t{shape.num_sequences} * shape.num_query_heads * shape.query_tokens * shape.head_dim, seed);
    for (std::size_t s = 0; s < rows.size(); ++s) {
      auto const part = static_cast<unsigned>(s);
      HeldRows<T> held{random_elements<T>(rows[s] * shape.head_dim, seed + 2 * part + 1),
                       random_elements<T>(rows[s] * shape.output_dim(), seed + 2 * part + 2),
                       std::vector<std::int32_t>(at(rows[s]))};
      std::iota(held.positions.begin(), held.positions.end(), 0);
      segments.push_back(std::move(held));
    }
  }
  [[nodiscard]] std::int64_t rows(std::size_t segment) const {
    return static_cast<std::int64_t>(segments[segment].positions.size());
  }
  /// [segments + 1] where the rows of each segment begin, one after the other.
  [[nodiscard]] std::vector<std::int64_t> row_offsets() const {
    std::vector<std::int64_t> offsets{0};
    for (std::size_t s = 0; s < segments.size(); ++s) offsets.push_back(offsets.back() + rows(s));
    return offsets;
  }
  [[nodiscard]] std::int64_t total_rows() const { return row_offsets().back(); }
  [[nodiscard]] ha::StridedLayout query_layout() const {
    return ha::strided_bhsd(shape.num_sequences, shape.num_query_heads, shape.query_tokens, shape.head_dim);
  }
  /// [batch, tokens, heads, channels], so that output and queries differ.
  [[nodiscard]] ha::StridedLayout output_layout() const {
    return ha::strided_bshd(shape.num_sequences, shape.query_tokens, shape.num_query_heads, shape.output_dim());
  }
};

/// The same over a latent: each value is the first channels of its key.
template <class T>
HeldProblem<T> latent_problem(ha::AttentionShape const& shape, std::vector<std::int64_t> const& rows, unsigned seed) {
  HeldProblem<T> p(shape, rows, seed);
  for (HeldRows<T>& held : p.segments) {
    for (std::size_t i = 0; i < held.positions.size(); ++i) {
      std::copy_n(&held.keys[i * at(shape.head_dim)], shape.output_dim(), &held.values[i * at(shape.output_dim())]);
    }
  }
  return p;
}

/// Attention's results: values in the order of `output_layout`, and log-sum-exp.
struct Attended {
  std::vector<double> output;
  std::vector<double> lse;
};

template <class T>
Attended naive_attention(HeldProblem<T> const& p) {
  auto const& shape = p.shape;
  auto const layout = p.output_layout();
  Attended result;
  result.output.resize(at(layout.required_span_size()));
  double const scale = p.options.scale != 0 ? double(p.options.scale) : 1 / std::sqrt(double(shape.head_dim));
  for (std::int64_t b = 0; b < shape.num_sequences; ++b) {
    for (std::int64_t h = 0; h < shape.num_query_heads; ++h) {
      auto const& held = p.segments[at(b * shape.num_kv_heads + h / (shape.num_query_heads / shape.num_kv_heads))];
      for (std::int64_t t = 0; t < shape.query_tokens; ++t) {
        float const* const query = &p.queries[at(p.query_layout().offset(b, h, t, 0))];
        std::vector<double> logits;
        double top = -std::numeric_limits<double>::infinity();
        for (std::size_t i = 0; i < held.positions.size(); ++i) {
          double x = 0;
          for (std::int64_t c = 0; c < shape.head_dim; ++c) {
            x += double(query[c]) * double(ha::to_float(held.keys[i * at(shape.head_dim) + at(c)]));
          }
          x *= scale;
          if (p.options.soft_cap > 0) x = double(p.options.soft_cap) * std::tanh(x / double(p.options.soft_cap));
          std::int64_t const before = p.first_positions.empty() ? 0 : p.first_positions[at(b)] + t - held.positions[i];
          bool const seen = before >= 0 && (p.options.window == 0 || before < p.options.window);
          logits.push_back(seen ? x : -std::numeric_limits<double>::infinity());
          top = std::max(top, logits.back());
        }
        double const sink = p.sinks.empty() ? -std::numeric_limits<double>::infinity() : double(p.sinks[at(h)]);
        top = std::max(top, sink);
        double z = std::isinf(sink) ? 0 : std::exp(sink - top);
        for (std::size_t i = 0; i < logits.size(); ++i) {
          double const weight = std::isinf(top) ? 0 : std::exp(logits[i] - top);
          z += weight;
          for (std::int64_t c = 0; c < shape.output_dim(); ++c) {
            result.output[at(layout.offset(b, h, t, c))] +=
                weight * double(ha::to_float(held.values[i * at(shape.output_dim()) + at(c)]));
          }
        }
        for (std::int64_t c = 0; c < shape.output_dim() && z > 0; ++c) {
          result.output[at(layout.offset(b, h, t, c))] /= z;
        }
        result.lse.push_back(z > 0 ? top + std::log(z) : -std::numeric_limits<double>::infinity());
      }
    }
  }
  return result;
}

/// Compares a back end's results with the reference's. @param times  the error that is allowed
template <class O>
void check_attended(std::vector<O> const& output, std::vector<float> const& lse, Attended const& expected,
                    double times = 1) {
  REQUIRE(output.size() == expected.output.size());
  double const rounding = times * (std::is_same_v<O, float> ? 3e-6 : std::is_same_v<O, ha::float16> ? 1e-3 : 8e-3);
  double worst = 0;
  for (std::size_t i = 0; i < output.size(); ++i) {
    double const error = std::abs(double(ha::to_float(output[i])) - expected.output[i]);
    double const allowed = rounding * (1 + std::abs(expected.output[i]));
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error / allowed);
  }
  CHECK(worst <= 1);
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(expected.lse[i])) CHECK(lse[i] == -std::numeric_limits<float>::infinity());
  }
  double worst_lse = 0;
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(expected.lse[i])) continue;
    double const error = std::abs(double(lse[i]) - expected.lse[i]) / (1 + std::abs(expected.lse[i]));
    worst_lse = std::isnan(error) ? 1 : std::max(worst_lse, error);
  }
  CHECK(worst_lse <= 5e-6 * times);
}

/// Puts each segment's rows at `place(segment, row)` of tensors of `rows` rows; what no row fills is NaN or, for 2-byte
/// elements, all ones.
template <class T>
struct PlacedRows {
  std::vector<T> keys, values;

  template <class Place>
  PlacedRows(HeldProblem<T> const& p, std::int64_t rows, Place const& place) {
    auto const nan = [&] {
      if constexpr (std::is_same_v<T, float>) {
        return std::numeric_limits<float>::quiet_NaN();
      } else {
        return T{0xffff};
      }
    }();
    std::int64_t const d = p.shape.head_dim;
    std::int64_t const v = p.shape.output_dim();
    keys.assign(at(rows * d), nan);
    values.assign(at(rows * v), nan);
    for (std::size_t s = 0; s < p.segments.size(); ++s) {
      for (std::int64_t i = 0; i < p.rows(s); ++i) {
        std::copy_n(p.segments[s].keys.begin() + i * d, d, keys.begin() + place(s, i) * d);
        std::copy_n(p.segments[s].values.begin() + i * v, v, values.begin() + place(s, i) * v);
      }
    }
  }
};

/// Whether `make` of `for_each_view` makes such a view, known when a test is compiled: what looks at one form alone
/// then instantiates no kernels over the others.
template <class View, class Make>
inline constexpr bool makes = std::is_same_v<std::invoke_result_t<Make const&, HostUpload const&>, View>;
using Ragged = ha::RaggedView<std::int32_t>;

/// Calls `f(name, placed, make)` for every form that holds rows in their order; `make(upload)` gives the view.
/// Pages have no positions of their own: they are left out where rows are not tokens 0, 1, …
template <class T, class F>
void for_each_view(HeldProblem<T> const& p, bool rows_are_tokens, F const& f) {
  std::int32_t const heads = p.shape.num_kv_heads;
  std::size_t const count = p.segments.size();
  std::vector<std::int32_t> lengths;
  std::vector<std::int32_t> cu_seqlens{0};
  std::vector<std::int32_t> positions;
  std::int64_t most = 0;
  for (std::size_t s = 0; s < count; ++s) {
    lengths.push_back(static_cast<std::int32_t>(p.rows(s)));
    cu_seqlens.push_back(cu_seqlens.back() + lengths.back());
    positions.insert(positions.end(), p.segments[s].positions.begin(), p.segments[s].positions.end());
    most = std::max(most, p.rows(s));
  }
  PlacedRows<T> const ragged(p, cu_seqlens.back() + 1,
                             [&](std::size_t s, std::int64_t i) { return cu_seqlens[s] + i; });
  f(std::string("ragged"), ragged, [&](auto const& upload) {
    return ha::RaggedView{upload(cu_seqlens), heads, upload(positions)};
  });
  std::vector<std::int64_t> const wide(cu_seqlens.begin(), cu_seqlens.end());
  if (rows_are_tokens) {
    f(std::string("ragged, 64-bit offsets"), ragged, [&](auto const& upload) {
      return ha::RaggedView{upload(wide), heads};
    });
  }
  for (auto const alignment : {ha::Alignment::left, ha::Alignment::right}) {
    std::int64_t const head_rows = most + 3;
    auto const place = [&](std::size_t s, std::int64_t i) {
      return static_cast<std::int64_t>(s) * head_rows +
             (alignment == ha::Alignment::right ? head_rows - lengths[s] : 0) + i;
    };
    std::vector<std::int32_t> padded_positions(count * at(head_rows), -1);
    for (std::size_t s = 0; s < count; ++s) {
      for (std::int64_t i = 0; i < p.rows(s); ++i) padded_positions[at(place(s, i))] = p.segments[s].positions[at(i)];
    }
    f(std::string("padded"), PlacedRows<T>(p, static_cast<std::int64_t>(count) * head_rows + 1, place),
      [&](auto const& upload) {
        return ha::PaddedView{upload(lengths), heads, head_rows, alignment, upload(padded_positions)};
      });
  }
  if (!rows_are_tokens) return;
  for (std::int64_t const page_size : {1, 5, 16}) {
    // Pages in a random order, one unused page between segments.
    std::vector<std::int32_t> indptr{0};
    std::vector<std::int32_t> last;
    std::int64_t max_pages = 0;
    for (std::int32_t const length : lengths) {
      std::int64_t const pages = (length + page_size - 1) / page_size;
      max_pages = std::max(max_pages, pages);
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(pages));
      last.push_back(pages == 0 ? -1 : static_cast<std::int32_t>(length - (pages - 1) * page_size));
    }
    std::int64_t const pool = indptr.back() + 3;
    std::vector<std::int32_t> pages(at(pool));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
    PlacedRows<T> const placed(p, pool * page_size, [&](std::size_t s, std::int64_t i) {
      return pages[at(indptr[s] + i / page_size)] * page_size + i % page_size;
    });
    f("paged, CSR, " + std::to_string(page_size), placed, [&](auto const& upload) {
      return ha::PagedView::csr(upload(pages), upload(indptr), upload(last), heads, page_size);
    });
    std::int64_t const stride = max_pages + 1;
    std::vector<std::int32_t> table(count * at(stride), -1);
    for (std::size_t s = 0; s < count; ++s) {
      std::copy(pages.begin() + indptr[s], pages.begin() + indptr[s + 1],
                table.begin() + static_cast<std::ptrdiff_t>(s) * stride);
    }
    f("paged, dense, " + std::to_string(page_size), placed, [&](auto const& upload) {
      return ha::PagedView::dense(upload(table), stride, upload(lengths), heads, page_size);
    });
  }
}

/// What a rolling cache holds whose every second ring has slack, with gaps between its blocks, and the problem that
/// this poses.
template <class T>
struct RolledProblem {
  HeldProblem<T> problem;
  std::vector<ha::RollingHead> heads;
  std::vector<std::int32_t> lengths;
  std::int64_t rows = 0;

  RolledProblem(ha::AttentionShape const& shape, std::vector<ha::WindowRule> const& of_heads,
                std::vector<std::int32_t> const& of_lengths, unsigned seed)
      : problem(shape, {}, seed), lengths(of_lengths) {
    std::int32_t const longest = *std::max_element(lengths.begin(), lengths.end());
    for (ha::WindowRule const& form : of_heads) {
      ha::RollingHead head;
      head.rule = {form.sink == ha::all_tokens ? longest : form.sink, form.window};
      head.ring = form.window == 0 ? 0 : form.window + (heads.size() % 2 == 0 ? 0 : 5);
      rows += 2;
      head.first_row = rows;
      rows += head.slots();
      heads.push_back(head);
    }
    for (ha::RollingHead& head : heads) head.sequence_rows = rows;
    rows = rows * static_cast<std::int64_t>(lengths.size()) + 1;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      for (std::size_t h = 0; h < heads.size(); ++h) {
        std::vector<std::int32_t> tokens;
        for (std::int32_t t = 0; t < lengths[b]; ++t) {
          if (t < heads[h].rule.sink || t >= lengths[b] - heads[h].rule.window) tokens.push_back(t);
        }
        auto const n = static_cast<std::int64_t>(tokens.size());
        unsigned const part = seed + 100 + 2 * static_cast<unsigned>(b * heads.size() + h);
        problem.segments.push_back({random_elements<T>(n * shape.head_dim, part),
                                    random_elements<T>(n * shape.output_dim(), part + 1), tokens});
      }
    }
  }
  [[nodiscard]] PlacedRows<T> placed() const {
    return {problem, rows, [&](std::size_t s, std::int64_t i) {
              ha::RollingHead const& head = heads[s % heads.size()];
              std::int64_t const token = problem.segments[s].positions[at(i)];
              // Token t of a ring lies in its slot modulo the ring.
              std::int64_t const slot =
                  token < head.rule.sink ? token : head.rule.sink + (token - head.rule.sink) % head.ring;
              return static_cast<std::int64_t>(s / heads.size()) * head.sequence_rows + head.first_row + slot;
            }};
  }
  template <class Upload>
  [[nodiscard]] ha::RollingView view(Upload const& upload) const {
    ha::RollingSlotsView slots;
    slots.heads = upload(heads);
    slots.num_layers = 1;
    slots.num_sequences = static_cast<std::int32_t>(lengths.size());
    slots.num_kv_heads = problem.shape.num_kv_heads;
    return {slots, 0, upload(lengths)};
  }
};

}  // namespace headaware_test
