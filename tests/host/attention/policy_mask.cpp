// Policies as masks, and masked attention over everything against attention over what is kept, step by step.

#include "support/catch.hpp"
#include "support/differences.hpp"
#include "support/errors.hpp"
#include "support/kept_rows.hpp"

#include <headaware/attention/attend.hpp>
#include <headaware/attention/policy_mask.hpp>
#include <headaware/compressor.hpp>
#include <headaware/policy/with_keep_lists.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

using namespace headaware_test;

namespace {

constexpr std::int32_t listed[] = {0, 3, 4, 9, 17, 33, 40};

/// Keeps what it says of any sequence: a list that is the same at every step.
ha::PolicyTable all_policies() {
  ha::PolicyTable table(2, 4);
  table.set(0, 0, ha::SinkWindow{.sink = 4, .window = 12});
  table.set(0, 1, ha::WindowOnly{.window = 7});
  table.set(0, 2, ha::Full{});
  table.set(0, 3, ha::Prune{});
  table.set(1, 0, ha::SinkWindow{.sink = 0, .window = 1});
  table.set(1, 1, ha::WindowOnly{.window = 64});
  table.set(1, 2, ha::KeepList{listed, 7});
  table.set(1, 3, ha::SinkWindow{.sink = 2, .window = 0});
  return table;
}

/// A user's policy with nothing but `keeps`: every third token and the newest.
struct EveryThird {
  static constexpr std::string_view name = "every_third";
  bool keeps(std::int64_t token, std::int64_t length) const { return token % 3 == 0 || token + 1 == length; }
  friend bool operator==(EveryThird const&, EveryThird const&) = default;
};

}  // namespace

TEST_CASE("masks say what policies say, as floats and as bits", "[attention]") {
  auto const table = all_policies();
  for (std::int64_t const keys : {1, 31, 32, 33, 70}) {
    for (std::int32_t const group : {1, 3}) {
      for (std::int32_t const layer : {0, 1}) {
        ha::MaskShape const shape{.layer = layer, .group = group, .first_query = 5, .queries = 60, .keys = keys};
        std::vector<float> floats(at(4 * group * shape.queries * keys), 7);
        std::vector<std::uint32_t> bits(at(4 * group * shape.queries * shape.row_words()), 7);
        ha::fill_policy_mask(table, shape, floats.data());
        ha::fill_policy_mask(table, shape, bits.data());
        FirstDifference difference;
        for (std::int64_t h = 0; h < 4 * group; ++h) {
          for (std::int64_t q = 0; q < shape.queries; ++q) {
            std::int64_t const row = h * shape.queries + q;
            for (std::int64_t k = 0; k < shape.row_words() * 32; ++k) {
              std::int64_t const position = 5 + q;
              bool const seen = k < keys && k <= position &&
                                table.visit(layer, static_cast<std::int32_t>(h / group),
                                            [&](auto const& policy) { return policy.keeps(k, position + 1); });
              bool const bit = (bits[at(row * shape.row_words() + k / 32)] >> (k % 32) & 1U) != 0;
              difference.expect(bit, seen, "bit of query head ", h, ", query ", q, ", key ", k);
              if (k < keys) {
                difference.expect(floats[at(row * keys + k)], seen ? 0.0F : -std::numeric_limits<float>::infinity(),
                                  "number of query head ", h, ", query ", q, ", key ", k);
              }
            }
          }
        }
        CHECK(difference.text() == "");
      }
    }
  }
}

TEST_CASE("masks of one's own policy and of lists that differ by sequence", "[attention]") {
  REQUIRE(EveryThird{} == EveryThird{});
  ha::UniformTable<EveryThird> const mine(EveryThird{}, 1, 1);
  std::vector<std::uint32_t> bits(1);
  ha::fill_policy_mask(mine, {.first_query = 10, .queries = 1, .keys = 32}, bits.data());
  CHECK(bits[0] == 0b110'0100'1001U);
  std::vector<std::int32_t> const a{1, 2};
  std::vector<std::int32_t> const b{0, 5};
  std::vector<ha::KeepList> const lists{{a.data(), 2}, {b.data(), 2}};
  ha::WithKeepLists const table(ha::UniformTable<ha::Full>({}, 1, 1), lists.data(), 2);
  ha::fill_policy_mask(table, {.first_query = 4, .queries = 1, .keys = 9, .sequence = 0}, bits.data());
  CHECK(bits[0] == 0b110U);
  ha::fill_policy_mask(table, {.first_query = 4, .queries = 1, .keys = 9, .sequence = 1}, bits.data());
  CHECK(bits[0] == 0b1U);
}

TEST_CASE("masks refuse what makes no sense", "[attention]") {
  auto const table = all_policies();
  std::vector<float> mask(64);
  check_error<ha::ArgumentError>([&] { ha::fill_policy_mask(table, {.layer = 2}, mask.data()); },
                                 {"layer", "[0, 2)", "2", "fill_policy_mask"});
  check_error<ha::ArgumentError>([&] { ha::fill_policy_mask(table, {.group = 0}, mask.data()); },
                                 {"group", "> 0", "0", "fill_policy_mask"});
  check_error<ha::ArgumentError>([&] { ha::fill_policy_mask(table, {.first_query = -1}, mask.data()); },
                                 {"first query", ">= 0", "-1", "fill_policy_mask"});
  constexpr std::int64_t last = std::numeric_limits<std::int64_t>::max() - 3;
  check_error<ha::ArgumentError>(
      [&] { ha::fill_policy_mask(table, {.first_query = last, .queries = 8, .keys = 1}, mask.data()); },
      {"first query", "at most 9223372036854775799", "9223372036854775804", "fill_policy_mask"});
  check_error<ha::ArgumentError>(
      [&] { ha::fill_policy_mask(table, {.queries = 1, .keys = 1}, static_cast<float*>(nullptr)); },
      {"mask", "a pointer", "nullptr", "fill_policy_mask"});
  ha::fill_policy_mask(table, {.queries = 0, .keys = 5}, static_cast<float*>(nullptr));
  std::int32_t const unordered[] = {9, 3, 5};
  check_error<ha::ArgumentError>(
      [&] {
        ha::fill_policy_mask(ha::PolicyTable(1, 1, ha::KeepList{unordered, 3}), {}, mask.data());
      },
      {"keep-list entry", "[10, ", "3", "KeepList entry 1"});
  ha::UniformTable const full(ha::Full{}, 1, 1);
  ha::KeepList const unlisted{nullptr, 3};
  check_error<ha::ArgumentError>([&] { ha::fill_policy_mask(ha::WithKeepLists(full, &unlisted, 1), {}, mask.data()); },
                                 {"keep-list tokens", "a pointer", "nullptr", "KeepList"});
  check_error<ha::ArgumentError>([&] { ha::fill_policy_mask(ha::WithKeepLists(full, nullptr, 1), {}, mask.data()); },
                                 {"keep-lists", "a pointer", "nullptr", "WithKeepLists"});
}

TEST_CASE("masked attention over all tokens is attention over the kept ones, at every step", "[attention]") {
  constexpr std::int64_t dim = 16;
  constexpr std::int32_t heads = 4;
  constexpr std::int32_t steps = 90;
  auto const table = all_policies();
  auto const source = ha::strided_bhsd(1, heads, steps, dim);
  auto const keys = random_elements<float>(heads * steps * dim, 1);
  auto const values = random_elements<float>(heads * steps * dim, 2);
  auto const queries = random_elements<float>(2 * heads * steps * dim, 3);
  auto const layout = ha::strided_bhsd(1, 2 * heads, 1, dim);
  for (std::int32_t position = 0; position < steps; ++position) {
    INFO("position " << position);
    std::vector<std::int32_t> const lengths{position + 1};
    // A keep-list names tokens that have come.
    auto step_table = table;
    std::int64_t arrived = 0;
    while (arrived < 7 && listed[arrived] <= position) ++arrived;
    step_table.set(1, 2, ha::KeepList{listed, arrived});
    ha::Compaction const compaction(step_table, lengths);
    std::vector<float> kept_keys(at(compaction.kept_total() * dim) + 1);
    std::vector<float> kept_values(at(compaction.kept_total() * dim) + 1);
    std::vector<ha::LayerKv<float const>> const layers{{keys.data(), values.data()}, {keys.data(), values.data()}};
    ha::compress(compaction, layers, source, ha::ragged(compaction, kept_keys.data(), kept_values.data(), dim));
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      // What the policies keep, by the library's ragged cache.
      std::vector<float> output(2 * heads * dim, 77);
      std::vector<float> lse(2 * heads, 77);
      float const* const query = &queries[at(position * 2 * heads * dim)];
      std::int64_t const* const offsets = &compaction.offsets()[at(layer * heads)];
      ha::attend({1, 2 * heads, heads, 1, dim}, ha::AttentionQueries{query, layout},
                 ha::KeptCache{kept_keys.data(), kept_values.data(), ha::RaggedView{offsets, heads}},
                 ha::AttentionOutput{output.data(), layout, lse.data()});
      // All tokens, masked.
      std::vector<float> mask(at(2 * heads * steps));
      ha::fill_policy_mask(table, {.layer = layer, .group = 2, .first_query = position, .queries = 1, .keys = steps},
                           mask.data());
      double worst = 0;
      for (std::int64_t h = 0; h < 2 * heads; ++h) {
        std::vector<double> sums(dim);
        double z = 0;
        for (std::int64_t k = 0; k < steps; ++k) {
          double x = 0;
          for (std::int64_t c = 0; c < dim; ++c) {
            x += double(query[h * dim + c]) * double(keys[at(source.offset(0, h / 2, k, c))]);
          }
          double const weight = std::exp(x / std::sqrt(double(dim)) + double(mask[at(h * steps + k)]));
          z += weight;
          for (std::int64_t c = 0; c < dim; ++c) {
            sums[at(c)] += weight * double(values[at(source.offset(0, h / 2, k, c))]);
          }
        }
        for (std::int64_t c = 0; c < dim; ++c) {
          double const expected = z > 0 ? sums[at(c)] / z : 0;
          worst = std::max(worst, std::abs(double(output[at(h * dim + c)]) - expected));
        }
        if (z > 0) {
          worst = std::max(worst, std::abs(double(lse[at(h)]) - std::log(z)));
        } else {
          CHECK(lse[at(h)] == -std::numeric_limits<float>::infinity());
        }
      }
      CHECK(worst < 3e-6);
    }
  }
}
