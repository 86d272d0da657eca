// Attention over latents, whose values are the first channels of their keys, against plain double-precision loops.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/kept_rows.hpp"

#include <headaware/attention/attend.hpp>

#include <cstdint>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

template <class O, class T, class View>
void check(HeldProblem<T> const& p, PlacedRows<T> const& placed, View const& view, Attended const& expected) {
  auto options = p.options;
  if (!p.first_positions.empty()) options.first_positions = p.first_positions.data();
  if (!p.sinks.empty()) options.sinks = p.sinks.data();
  std::vector<O> output(expected.output.size(), ha::from_float<O>(77));
  std::vector<float> lse(expected.lse.size(), 77);
  ha::attend(p.shape, ha::AttentionQueries{p.queries.data(), p.query_layout()},
             ha::LatentCache{placed.keys.data(), view},
             ha::AttentionOutput{output.data(), p.output_layout(), lse.data()}, options);
  check_attended(output, lse, expected);
}

template <class O = float, class T>
void check_views(HeldProblem<T> const& p, bool rows_are_tokens = true) {
  Attended const expected = naive_attention(p);
  for_each_view(p, rows_are_tokens, [&](std::string const& name, PlacedRows<T> const& placed, auto const& make) {
    INFO(name);
    HostUpload const upload;
    check<O>(p, placed, make(upload), expected);
  });
}

}  // namespace

TEMPLATE_TEST_CASE("latents of DeepSeek's size", "[attention]", ha::float16, ha::bfloat16) {
  // 1 / sqrt(128 + 64), as the model has it. Tails of a block and of a split, of a sequence alone and of several.
  for (std::int32_t const heads : {16, 128}) {
    auto p = latent_problem<TestType>({4, heads, 1, 1, 576, 512}, {0, 1, 70, heads == 16 ? 1111 : 200}, 3);
    p.options.scale = 0.0721688F;
    Attended const expected = naive_attention(p);
    for_each_view(p, true, [&](std::string const& name, PlacedRows<TestType> const& placed, auto const& make) {
      if (name != "ragged" && name != "paged, CSR, 16") return;
      INFO(name << ", " << heads << " heads");
      HostUpload const upload;
      check<float>(p, placed, make(upload), expected);
      check<TestType>(p, placed, make(upload), expected);
    });
  }
}

TEMPLATE_TEST_CASE("latents over every form, in groups of every size", "[attention]", float, ha::float16,
                   ha::bfloat16) {
  std::vector<std::int64_t> const rows{0, 1, 63, 64, 65, 511, 513, 1025};
  for (std::int32_t const heads : {1, 2, 3, 8, 33, 130}) {
    for (auto const& [keys, values] : {std::pair{24, 16}, std::pair{22, 18}, std::pair{40, 40}, std::pair{32, 1}}) {
      if (heads > 3 && (keys == 24 || keys == 32)) continue;  // few heads tell as much, in a third of the time
      INFO(heads << " heads, " << keys << " and " << values << " channels");
      auto p = latent_problem<TestType>({8, heads, 1, 1, keys, values}, rows, 5);
      p.options = {.scale = 0.3F, .soft_cap = heads == 3 ? 2.0F : 0.0F};
      if (heads == 8) p.sinks = std::vector<float>(8, 1.5F);
      check_views(p);
    }
  }
}

TEST_CASE("latents of a chunk", "[attention]") {
  for (std::int64_t const tokens : {2, 9, 70}) {
    auto p = latent_problem<ha::float16>({3, 8, 1, tokens, 40, 32}, {tokens, 300, 700}, 11);
    p.first_positions = {0, 300 - static_cast<std::int32_t>(tokens), 650};
    check_views(p);
    for (auto& segment : p.segments) {
      for (auto& position : segment.positions) position = position < 4 ? position : 3 * position;
    }
    check_views(p, false);
  }
}

TEST_CASE("a latent attends as a cache does whose values are copies", "[attention]") {
  auto const p = latent_problem<ha::float16>({1, 40, 1, 1, 64, 48}, {900}, 12);
  for_each_view(p, true, [&](std::string const& name, PlacedRows<ha::float16> const& placed, auto const& make) {
    if (name != "ragged") return;
    HostUpload const upload;
    std::vector<float> once(40 * 48);
    std::vector<float> twice(40 * 48);
    ha::AttentionQueries const queries{p.queries.data(), p.query_layout()};
    ha::attend(p.shape, queries, ha::LatentCache{placed.keys.data(), make(upload)},
               ha::AttentionOutput{once.data(), p.output_layout()});
    ha::attend(p.shape, queries, ha::KeptCache{placed.keys.data(), placed.values.data(), make(upload)},
               ha::AttentionOutput{twice.data(), p.output_layout()});
    double worst = 0;
    for (std::size_t i = 0; i < once.size(); ++i) worst = std::max<double>(worst, std::abs(once[i] - twice[i]));
    CHECK(worst < 1e-6);
  });
}

TEST_CASE("latents refuse values wider than their rows", "[attention]") {
  std::vector<float> data(64);
  std::vector<std::int32_t> const offsets{0, 1};
  auto const call = [&](ha::AttentionShape const& shape, float const* rows) {
    ha::attend(shape, ha::AttentionQueries{data.data(), ha::strided_bhsd(1, 2, 1, 8)},
               ha::LatentCache{rows, ha::RaggedView{offsets.data(), 1}},
               ha::AttentionOutput{data.data() + 32, ha::strided_bhsd(1, 2, 1, 9)});
  };
  call({1, 2, 1, 1, 8, 7}, data.data());
  check_error<ha::ArgumentError>(
      [&] {
        call({1, 2, 1, 1, 8, 9}, data.data());
      },
      {"value_dim", "at most the row's 8 channels", "9", "attend"});
  check_error<ha::ArgumentError>(
      [&] {
        call({1, 2, 1, 1, 8, 7}, nullptr);
      },
      {"keys", "a pointer", "nullptr", "attend"});
}

TEST_CASE("the shape of a layer's attention", "[attention]") {
  ha::ModelShape const model(
      {{.num_query_heads = 8, .num_kv_heads = 2, .head_dim = 16, .value_dim = 12}, {.kind = ha::LayerKind::none}});
  auto const shape = ha::AttentionShape::of(model.layer(0), 3, 2);
  CHECK(shape.num_sequences == 3);
  CHECK(shape.query_tokens == 2);
  CHECK(shape.group() == 4);
  CHECK(shape.head_dim == 16);
  CHECK(shape.output_dim() == 12);
  check_error<ha::ArgumentError>([&] { (void)ha::AttentionShape::of(model.layer(1), 1); },
                                 {"layer", "attends", "none", "AttentionShape::of"});
}
