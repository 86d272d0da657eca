// Selection by scores on CUDA: the CPU's tokens, one by one; and through `compress`.

#include "support/device_cache.cuh"
#include "support/selection_problem.hpp"

#include <headaware/policy/with_keep_lists.hpp>
#include <headaware/score/select.cuh>
#include <headaware/score/select.hpp>
#include <headaware/score/selected_sizes.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

using namespace headaware_test;

namespace {

/// A problem on the device, and memory for what is selected.
class DeviceSelection {
 public:
  explicit DeviceSelection(SelectionProblem const& p)
      : first_heads_(p.first_heads),
        lengths_(p.lengths),
        scores_(p.scores),
        windows_(p.windows),
        budgets_(p.budgets),
        stride_(ha::selection_stride(p.shape(), p.host_rule())),
        tokens_(std::vector<std::int32_t>(at(p.segments() * stride_), -7)),
        counts_(std::vector<std::int32_t>(at(p.segments()), -7)),
        lists_(std::vector<ha::KeepList>(at(p.segments()))),
        shape_(p.shape(first_heads_.data(), lengths_.data())),
        rule_(p.rule) {
    if (!p.windows.empty()) rule_.windows = windows_.data();
    if (!p.budgets.empty()) rule_.budgets = budgets_.data();
    score_stride_ = p.stride;
    std::size_t bytes = 0;
    REQUIRE_CUDA(select(nullptr, bytes, nullptr));
    temp_bytes_ = bytes;
    temp_.emplace_back(std::vector<std::byte>(bytes, std::byte{0xEE}));
  }

  cudaError_t select(void* d_temp, std::size_t& bytes, cudaStream_t stream) const {
    return ha::device::select_tokens(d_temp, bytes, shape_, {scores_.data(), score_stride_}, rule_, to(), stream);
  }
  cudaError_t operator()(cudaStream_t stream) const {
    std::size_t bytes = temp_bytes_;
    return select(temp_.front().data(), bytes, stream);
  }
  [[nodiscard]] ha::SelectedTokens to() const { return {tokens_.data(), stride_, lists_.data(), counts_.data()}; }
  [[nodiscard]] ha::KeepList const* lists() const { return lists_.data(); }
  [[nodiscard]] std::vector<std::int32_t> counts() const { return counts_.host(); }
  [[nodiscard]] std::int32_t const* lengths() const { return lengths_.data(); }
  void set_scores(std::vector<float> const& scores) const {
    REQUIRE_CUDA(cudaMemcpy(scores_.data(), scores.data(), scores.size() * sizeof(float), cudaMemcpyHostToDevice));
  }

  /// Compares all memory with what the CPU selects.
  void check(SelectionProblem const& p) const {
    std::vector<std::int32_t> tokens(at(p.segments() * stride_), -7);
    std::vector<std::int32_t> counts(at(p.segments()), -7);
    ha::select_tokens(p.shape(), p.host_scores(), p.host_rule(),
                      ha::SelectedTokens{tokens.data(), stride_, nullptr, counts.data()});
    CHECK(counts_.host() == counts);
    CHECK(tokens_.host() == tokens);
    auto const lists = lists_.host();
    bool right = true;
    for (std::size_t s = 0; s < lists.size(); ++s) {
      right = right && lists[s].count == counts[s] &&
              lists[s].tokens == tokens_.data() + static_cast<std::ptrdiff_t>(s) * stride_;
    }
    CHECK(right);
  }

 private:
  DeviceVector<std::int32_t> first_heads_;
  DeviceVector<std::int32_t> lengths_;
  DeviceVector<float> scores_;
  DeviceVector<std::int32_t> windows_;
  DeviceVector<std::int32_t> budgets_;
  std::int64_t stride_;
  DeviceVector<std::int32_t> tokens_;
  DeviceVector<std::int32_t> counts_;
  DeviceVector<ha::KeepList> lists_;
  ha::SelectionShape shape_;
  ha::SelectionRule rule_;
  std::int64_t score_stride_ = 0;
  std::size_t temp_bytes_ = 0;
  std::vector<DeviceVector<std::byte>> temp_;
};

void check_selected(SelectionProblem const& p) {
  DeviceSelection const device(p);
  Stream const stream;
  REQUIRE_CUDA(device(stream));
  REQUIRE_CUDA(cudaStreamSynchronize(stream));
  device.check(p);
}

/// Compresses what was selected on the device into a ragged cache, and on the host what the CPU selects.
/// @param lists  with the counts that the host knows
void check_compressed(SelectionProblem const& p, DeviceSelection const& device,
                      std::vector<ha::KeepList> const& lists) {
  constexpr std::int64_t channels = 8;
  auto const sequences = static_cast<std::int32_t>(p.lengths.size());
  auto const layers = static_cast<std::int32_t>(p.heads.size());
  ha::UniformTable<ha::Full> const table(ha::Full{}, layers, p.heads.front());
  ha::TokenLists const selected = ha::select_tokens(p.shape(), p.host_scores(), p.host_rule());
  ha::Compaction const compaction(ha::WithKeepLists(table, selected.lists().data(), sequences), p.lengths);
  ha::Compaction const sized(ha::WithKeepLists(table, lists.data(), sequences), p.lengths);
  REQUIRE(sized.kept_total() == compaction.kept_total());

  std::int64_t const elements = sequences * p.heads.front() * p.max_length() * channels;
  std::vector<float> source(at(layers * elements));
  std::iota(source.begin(), source.end(), 0.0F);
  DeviceVector<float> const d_source(source);
  std::vector<ha::LayerKv<float const>> from;
  std::vector<ha::LayerKv<float const>> d_from;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    from.push_back({source.data() + layer * elements, source.data() + layer * elements});
    d_from.push_back({d_source.data() + layer * elements, d_source.data() + layer * elements});
  }
  auto const layout = ha::strided_bhsd(sequences, p.heads.front(), p.max_length(), channels);
  std::vector<float> keys(at(compaction.kept_total() * channels));
  std::vector<float> values = keys;
  ha::compress(compaction, from, layout, ha::ragged(compaction, keys.data(), values.data(), channels));

  DeviceVector<float> const d_keys(std::vector<float>(keys.size()));
  DeviceVector<float> const d_values(std::vector<float>(keys.size()));
  DeviceVector<std::int32_t> const d_kept(std::vector<std::int32_t>(at(p.segments())));
  DeviceVector<std::int32_t> const d_status(std::vector<std::int32_t>(1, -1));
  auto d_compaction = sized.on_device(ha::WithKeepLists(table, device.lists(), sequences), device.lengths());
  d_compaction.d_kept = d_kept.data();
  d_compaction.d_status = d_status.data();
  run_compress(d_compaction, ha::transfer(d_from, layout, ha::ragged(sized, d_keys.data(), d_values.data(), channels)));
  CHECK(d_status.host() == std::vector<std::int32_t>{0});
  CHECK(d_kept.host() == device.counts());
  CHECK(d_keys.host() == keys);
  CHECK(d_values.host() == values);
}

}  // namespace

TEST_CASE("the device selects the CPU's tokens", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  for_each_selection(SelectionProblem({3}, {1}, DrawnScores::distinct, 1), check_selected);
  for (DrawnScores const drawn : {DrawnScores::distinct, DrawnScores::few, DrawnScores::special}) {
    INFO("scores " << static_cast<int>(drawn));
    for_each_selection(SelectionProblem({2, 2}, {0, 300, 64, 5}, drawn, 2), check_selected);
    for_each_selection(SelectionProblem({1, 3, 2}, {100, 1025}, drawn, 3), check_selected);
  }
}

TEST_CASE("segments that several blocks count, and more heads than a block's threads", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (DrawnScores const drawn : {DrawnScores::distinct, DrawnScores::few}) {
    SelectionProblem p({2}, {9000, 4097}, drawn, 4);
    p.rule = {.sink = 4, .window = 16, .shared = 2000, .floor = 3};
    check_selected(p);
    SelectionProblem many({150, 150}, {7}, drawn, 5);
    many.rule = {.sink = 1, .window = 0, .shared = 700};
    check_selected(many);
  }
}

TEST_CASE("a replayed selection reads the scores of its time", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (bool const shares : {false, true}) {
    INFO("shared " << shares);
    SelectionProblem p({2, 2}, {90, 40}, DrawnScores::distinct, 6);
    p.rule = {.sink = 2, .window = 3, .shared = shares ? 77 : 0, .floor = shares ? 2 : 0};
    if (!shares) p.budgets = {5, 0, 60, 7};
    DeviceSelection const device(p);
    Stream const stream;
    Graph const graph(stream, device);
    for (unsigned seed = 7; seed < 9; ++seed) {
      p.draw(seed == 7 ? DrawnScores::few : DrawnScores::distinct, seed);
      device.set_scores(p.scores);
      graph.replay(stream);
      auto const expected = p.expected();
      auto const counts = device.counts();
      for (std::size_t s = 0; s < expected.size(); ++s) CHECK(counts[s] == std::ssize(expected[s]));
      if (seed == 8) check_compressed(p, device, ha::selected_lists(counts, device.to()));
    }
  }
}

TEST_CASE("what the host knows beforehand of a selection's sizes suffices to compress", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  for (bool const shares : {false, true}) {
    INFO("shared " << shares);
    SelectionProblem p(shares ? std::vector{3} : std::vector{3, 3}, {80, 20, 0}, DrawnScores::few, 9);
    p.rule = {.sink = 4, .window = 8, .shared = shares ? 50 : 0, .floor = shares ? 1 : 0};
    if (!shares) p.budgets = {5, 0, 60, 7, 1000, 1};
    DeviceSelection const device(p);
    Stream const stream;
    REQUIRE_CUDA(device(stream));
    REQUIRE_CUDA(cudaStreamSynchronize(stream));
    device.check(p);
    check_compressed(p, device, ha::selected_lists(p.shape(), p.host_rule(), device.to()));
  }
  SelectionProblem several({2, 2}, {10}, DrawnScores::few, 10);
  several.rule.shared = 5;
  bool refused = false;
  try {
    (void)ha::selected_lists(several.shape(), several.host_rule(), {});
  } catch (ha::ArgumentError const&) {
    refused = true;
  }
  CHECK(refused);
}

TEST_CASE("selection on the device refuses what makes no sense, and too little storage", "[score]") {
  HEADAWARE_REQUIRE_DEVICE();
  SelectionProblem p({2}, {20}, DrawnScores::distinct, 11);
  p.rule = {.sink = 1, .window = 1, .shared = 10};
  DeviceSelection const device(p);
  std::size_t bytes = 0;
  REQUIRE_CUDA(device.select(nullptr, bytes, nullptr));
  DeviceVector<std::byte> const temp(std::vector<std::byte>(bytes, std::byte{}));
  std::size_t few = bytes - 1;
  CHECK(device.select(temp.data(), few, nullptr) == cudaErrorInvalidValue);
  CHECK(std::string(ha::last_error_message()).find("temporary storage") != std::string::npos);
  ha::SelectionRule rule{.sink = -1};
  ha::SegmentScores const scores{nullptr, 20};
  CHECK(ha::device::select_tokens(nullptr, bytes, p.shape(), scores, rule, device.to(), nullptr) ==
        cudaErrorInvalidValue);
  ha::SelectionShape none = p.shape();
  none.num_sequences = 0;
  CHECK(ha::device::select_tokens(nullptr, bytes, none, scores, {}, {}, nullptr) == cudaSuccess);
  CHECK(bytes == 0);
  CHECK(ha::device::select_tokens(temp.data(), bytes, none, scores, {}, {}, nullptr) == cudaSuccess);
}
