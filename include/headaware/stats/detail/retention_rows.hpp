#pragma once

#include <headaware/config.hpp>
#include <headaware/detail/float_buffer.hpp>
#include <headaware/detail/score_block.hpp>
#include <headaware/detail/simd.hpp>
#include <headaware/detail/weighted_sums.hpp>
#include <headaware/stats/detail/pack_values.hpp>
#include <headaware/stats/retention.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN
namespace detail {
HEADAWARE_TARGET_BEGIN

/// @brief The keys of a tile of query rows, sorted into bins of distance as they pass by.
///
/// Bin b holds keys at distances [windows[b - 1], windows[b]), the last all farther ones that rows see: windows beyond
/// drop nothing. The keys that
/// may be sinks are kept one by one. All weights are relative to the row's running maximum. With a metric
/// every value has a second part, the same after the metric, whose errors are summed apart.
class RetentionRows {
  static constexpr std::int64_t group = ScoreBlocking::rows;

 public:
  /// @param visible  keys that a row sees; 0: all before it
  RetentionRows(RetentionGrid const& grid, std::int64_t visible, std::int64_t rows, std::int64_t value_dim,
                bool with_values, bool with_metric)
      : grid_(grid),
        bins_(std::count_if(grid.windows.begin(), grid.windows.end(),
                            [&](std::int32_t window) { return visible == 0 || window < visible; }) +
              1),
        sinks_(grid.sinks.back()),
        part_((value_dim + 2 * simd::lanes - 1) / (2 * simd::lanes) * (2 * simd::lanes)),
        channels_(with_metric ? 2 * part_ : part_),
        with_values_(with_values),
        with_metric_(with_metric),
        masses_(static_cast<std::size_t>(rows * bins_)),
        sink_weights_(static_cast<std::size_t>(rows * sinks_)),
        sums_(static_cast<std::size_t>(with_values ? rows * bins_ * channels_ : 0)),
        sink_values_(static_cast<std::size_t>(with_values ? sinks_ * channels_ : 0)),
        scratch_((2 + grid.windows.size() + 2 * grid.sinks.size()) *
                 static_cast<std::size_t>(with_values ? channels_ : 0)) {}

  /// Floats of a value: its channels, filled up with zeros, then, with a metric, as many after it.
  [[nodiscard]] std::int64_t channels() const { return channels_; }
  [[nodiscard]] std::int64_t part() const { return part_; }
  [[nodiscard]] std::int64_t sinks() const { return sinks_; }
  [[nodiscard]] bool with_values() const { return with_values_; }
  [[nodiscard]] float* sink_values() { return sink_values_.data(); }

  void clear(std::int64_t rows) {
    std::fill_n(masses_.data(), rows * bins_, 0.0F);
    std::fill_n(sink_weights_.data(), rows * sinks_, 0.0F);
    if (with_values_) std::fill_n(sums_.data(), rows * bins_ * channels_, 0.0F);
  }

  /// Rescales a row's sums to a larger maximum.
  void rescale(std::int64_t row, float factor) {
    auto const scale = [factor](float* data, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i) data[i] *= factor;
    };
    scale(masses_.data() + row * bins_, bins_);
    scale(sink_weights_.data() + row * sinks_, sinks_);
    if (with_values_) scale(sums_.data() + row * bins_ * channels_, bins_ * channels_);
  }

  /// @brief Adds keys [first, first + count) to `rows` rows of queries q, q + stride, …
  /// @param weights  [rows rounded up to whole groups, pitch], 0 where a row does not see a key
  /// @param values   [count, channels()]; unused in mass-only mode
  void add(std::int64_t row, std::int64_t rows, std::int64_t q, std::int64_t stride, std::int64_t first,
           std::int64_t count, float const* weights, std::int64_t pitch, float const* values) {
    stride_ = stride;
    for (std::int64_t r = 0; r < rows; r += group) {
      std::int64_t const nearest = q + (r + group - 1) * stride;  // no row of the group sees keys beyond it
      add_group(row + r, q + r * stride, first, std::min(count, nearest + 1 - first), weights + r * pitch, pitch,
                values);
    }
  }

  /// Adds one row's sums to `sums`. @param total Σ of the row's weights, the learned sink's among them
  void finish(std::int64_t row, std::int64_t q, double total, double sink_weight, RetentionSums& sums) {
    ++sums.rows;
    float const* const masses = masses_.data() + row * bins_;
    float const* const weights = sink_weights_.data() + row * sinks_;
    auto const windows = static_cast<std::size_t>(bins_ - 1);

    // Mass that windows keep beside the sinks, from the nearest bin on: near[j] = Σ of bins 0 … j.
    near_masses_.assign(windows, 0.0);
    for (std::size_t j = 0; j < windows; ++j) {
      near_masses_[j] = masses[j] + (j == 0 ? 0 : near_masses_[j - 1]);
      if (!with_values_) continue;
      float* const to = near(j);
      std::copy_n(bin(row, static_cast<std::int64_t>(j)), channels_, to);
      if (j > 0) axpy(1, near(j - 1), to);
    }
    if (with_values_) {
      std::copy_n(bin(row, bins_ - 1), channels_, output());
      if (windows > 0) axpy(1, near(windows - 1), output());
      for (std::int64_t k = 0; k < std::min(sinks_, q + 1); ++k)
        axpy(weights[k], sink_values_.data() + k * channels_, output());
      for (std::int64_t c = 0; c < channels_; ++c) output()[c] *= static_cast<float>(1 / total);
      Squares const squares = squares_of([&](std::int64_t c) { return simd::load(output() + c); });
      ++sums.value_rows;
      sums.output_squared += squares.plain;
      if (with_metric_) {
        ++sums.metric_rows;
        sums.output_metric_squared += squares.metric;
      }
      std::fill_n(far(), channels_, 0.0F);
    }

    double far_mass = 0;
    std::int64_t summed_to = -1;
    for (std::size_t j = windows; j-- > 0;) {
      std::int64_t const nearest = q - grid_.windows[j];  // the nearest key that the window drops
      far_mass += masses[j + 1];
      if (with_values_) axpy(1, bin(row, static_cast<std::int64_t>(j) + 1), far());
      if (nearest < 0) continue;
      if (std::int64_t const end = std::min(nearest + 1, sinks_); end != summed_to) {
        sum_sinks(weights, std::min(sinks_, q + 1), end);
        summed_to = end;
      }
      for (std::size_t s = 0; s < grid_.sinks.size(); ++s) {
        double const dropped = far_mass + dropped_masses_[s];
        double const kept = near_masses_[j] + kept_masses_[s] + sink_weight;
        std::size_t const cell = grid_.cell(s, j);
        double const mass = dropped / total;
        sums.mass[cell] += mass;
        sums.mass_squared[cell] += mass * mass;
        if (!with_values_) continue;
        // Δ = u_kept / Z_kept - o, or the same from what is dropped: whichever is the smaller part, for precision.
        Squares const moved = mass < 0.5 ? moved_by_dropped(far(), dropped_sinks(s), mass, kept, total)
                                         : moved_to_kept(near(j), kept_sinks(s), kept);
        sums.error_squared[cell] += moved.plain;
        sums.metric_error_squared[cell] += moved.metric;
      }
    }
  }

 private:
  [[nodiscard]] float* output() { return scratch_.data(); }
  [[nodiscard]] float* far() { return output() + channels_; }  ///< Σ of the bins beyond the window
  [[nodiscard]] float* near(std::size_t j) { return far() + (static_cast<std::int64_t>(j) + 1) * channels_; }
  [[nodiscard]] float* dropped_sinks(std::size_t s) { return near(grid_.windows.size() + s); }
  [[nodiscard]] float* kept_sinks(std::size_t s) { return dropped_sinks(grid_.sinks.size() + s); }
  [[nodiscard]] float* bin(std::int64_t row, std::int64_t b) { return sums_.data() + (row * bins_ + b) * channels_; }

  void axpy(float weight, float const* from, float* to) const {
    for (std::int64_t c = 0; c < channels_; c += simd::lanes)
      simd::store(to + c, simd::load(to + c) + weight * simd::load(from + c));
  }

  struct Squares {
    double plain = 0;
    double metric = 0;
  };

  /// Σ x² of both parts of a vector that `at(c)` gives lane by lane.
  template <class At>
  [[nodiscard]] Squares squares_of(At const& at) const {
    return {sum_of_squares(0, part_, at), with_metric_ ? sum_of_squares(part_, channels_, at) : 0};
  }

  /// |(m·o - u) / (1 - m)|², u = (far + sinks) / total.
  [[nodiscard]] Squares moved_by_dropped(float const* far, float const* sinks, double mass, double kept, double total) {
    auto const m = static_cast<float>(mass);
    auto const inverse = static_cast<float>(1 / total);
    Squares const squares = squares_of([&](std::int64_t c) {
      return m * simd::load(output() + c) - inverse * (simd::load(far + c) + simd::load(sinks + c));
    });
    double const grown = (total / kept) * (total / kept);
    return {squares.plain * grown, squares.metric * grown};
  }

  /// |u / Z - o|² with u = near + sinks; a row that keeps nothing of weight outputs zero.
  [[nodiscard]] Squares moved_to_kept(float const* near, float const* sinks, double kept) {
    float const inverse = kept > 0 ? static_cast<float>(std::min(1 / kept, 3e38)) : 0;
    return squares_of([&](std::int64_t c) {
      return inverse * (simd::load(near + c) + simd::load(sinks + c)) - simd::load(output() + c);
    });
  }

  /// For every sink size: the sums of sink keys that are dropped, [sinks[s], end), and of those kept.
  void sum_sinks(float const* weights, std::int64_t seen, std::int64_t end) {
    std::size_t const sizes = grid_.sinks.size();
    dropped_masses_.assign(sizes, 0.0);
    kept_masses_.assign(sizes, 0.0);
    if (with_values_) std::fill_n(dropped_sinks(0), 2 * static_cast<std::int64_t>(sizes) * channels_, 0.0F);
    // Each key once: to the largest sink size that still drops it, or, if none does, to the first of the kept.
    std::size_t size = 0;
    for (std::int64_t k = 0; k < seen; ++k) {
      while (size + 1 < sizes && grid_.sinks[size + 1] <= k) ++size;
      bool const drops = k < end && k >= grid_.sinks[size];
      (drops ? dropped_masses_[size] : kept_masses_[0]) += weights[k];
      if (with_values_)
        axpy(weights[k], sink_values_.data() + k * channels_, drops ? dropped_sinks(size) : kept_sinks(0));
    }
    // A sink size keeps what smaller ones drop in front of it, and drops what larger ones do.
    for (std::size_t s = 1; s < sizes; ++s) {
      kept_masses_[s] = kept_masses_[s - 1] + dropped_masses_[s - 1];
      if (!with_values_) continue;
      std::copy_n(kept_sinks(s - 1), channels_, kept_sinks(s));
      axpy(1, dropped_sinks(s - 1), kept_sinks(s));
    }
    for (std::size_t s = sizes - 1; s-- > 0;) {
      dropped_masses_[s] += dropped_masses_[s + 1];
      if (with_values_) axpy(1, dropped_sinks(s + 1), dropped_sinks(s));
    }
  }

  void add_group(std::int64_t row, std::int64_t q, std::int64_t first, std::int64_t count, float const* weights,
                 std::int64_t pitch, float const* values) {
    std::int64_t column = 0;
    for (; column < count && first + column < sinks_; ++column) {
      for (std::int64_t r = 0; r < group; ++r)
        sink_weights_.data()[(row + r) * sinks_ + first + column] = weights[r * pitch + column];
    }
    while (column < count) {
      // Keys up to `same` are in one bin for all rows of the group; then up to `mixed` they are not.
      std::int64_t const b = bin_of(q - (first + column));
      bool const one_bin = bin_of(q + (group - 1) * stride_ - (first + column)) == b;
      if (one_bin) {
        std::int64_t const nearest = b == 0 ? count : q - grid_.windows[static_cast<std::size_t>(b - 1)] - first + 1;
        std::int64_t const end = std::clamp(nearest, column + 1, count);
        add_run(row, b, weights + column, pitch, values + column * channels_, end - column);
        column = end;
      } else {
        for (std::int64_t r = 0; r < group; ++r) {
          float const weight = weights[r * pitch + column];
          if (weight == 0) continue;
          std::int64_t const own = bin_of(q + r * stride_ - (first + column));
          masses_.data()[(row + r) * bins_ + own] += weight;
          if (with_values_) axpy(weight, values + column * channels_, bin(row + r, own));
        }
        ++column;
      }
    }
  }

  void add_run(std::int64_t row, std::int64_t b, float const* weights, std::int64_t pitch, float const* values,
               std::int64_t keys) {
    for (std::int64_t r = 0; r < group; ++r) {
      float mass = 0;
      for (std::int64_t k = 0; k < keys; ++k) mass += weights[r * pitch + k];
      masses_.data()[(row + r) * bins_ + b] += mass;
    }
    if (with_values_) add_weighted(weights, pitch, values, keys, channels_, bin(row, b), bins_ * channels_);
  }

  /// The bin of a distance; keys ahead of the query, which weigh nothing, count as nearest.
  [[nodiscard]] std::int64_t bin_of(std::int64_t distance) const {
    return std::upper_bound(grid_.windows.begin(), grid_.windows.begin() + (bins_ - 1), distance) -
           grid_.windows.begin();
  }

  RetentionGrid grid_;
  std::int64_t bins_;
  std::int64_t sinks_;
  std::int64_t part_;
  std::int64_t channels_;
  bool with_values_;
  bool with_metric_;
  std::int64_t stride_ = 1;
  FloatBuffer masses_;        ///< [rows, bins]
  FloatBuffer sink_weights_;  ///< [rows, sinks]
  FloatBuffer sums_;          ///< [rows, bins, channels]
  FloatBuffer sink_values_;   ///< [sinks, channels]
  FloatBuffer scratch_;
  std::vector<double> near_masses_;
  std::vector<double> dropped_masses_;
  std::vector<double> kept_masses_;
};

HEADAWARE_TARGET_END
}  // namespace detail
HEADAWARE_NAMESPACE_END
