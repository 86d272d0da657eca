// Weights of row scores beside their document: read back, and refused where they are not those that it means.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/row_scorer.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace ha = headaware;
using headaware_test::check_error;
using headaware_test::TemporaryFolder;

namespace {

ha::RowScorer some_scorer(ha::ModelShape const& shape) {
  ha::RowScorer scorer;
  scorer.saved.model = "tiny";
  scorer.saved.shape = shape;
  scorer.saved.pieces = 1;
  scorer.saved.piece_tokens = 64;
  scorer.saved.layers.resize(static_cast<std::size_t>(shape.num_layers()));
  for (std::int32_t layer = 0; layer < shape.num_layers(); ++layer) {
    auto& weights = scorer.weights.emplace_back();
    if (!shape.layer(layer).has_cache()) continue;
    weights.resize(static_cast<std::size_t>(shape.layer(layer).num_kv_heads * scorer.features(layer).count()));
    for (std::size_t i = 0; i < weights.size(); ++i)
      weights[i] = static_cast<float>(i) - 1.5F * static_cast<float>(layer);
  }
  return scorer;
}

ha::ModelShape mixed_shape() {
  return ha::ModelShape({{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .value_dim = 4},
                         {.kind = ha::LayerKind::none},
                         {.num_query_heads = 2, .num_kv_heads = 1, .head_dim = 16}});
}

}  // namespace

TEST_CASE("weights are read with their document as they were written", "[tools]") {
  for (ha::ModelShape const& shape : {ha::ModelShape(ha::ModelConfig{3, 4, 2, 8}), mixed_shape()}) {
    TemporaryFolder const folder;
    auto scorer = some_scorer(shape);
    ha::save_row_scorer(folder.path(), scorer);
    CHECK(folder.entries() == (shape.uniform() ? 2 : 3));
    auto const read = ha::load_row_scorer(folder.path());
    CHECK(read.saved == scorer.saved);
    CHECK(read.weights == scorer.weights);
  }
}

TEST_CASE("weights that are not the document's are refused", "[tools]") {
  TemporaryFolder const folder;
  auto scorer = some_scorer(ha::ModelConfig{2, 2, 1, 4});
  ha::save_row_scorer(folder.path(), scorer);
  auto const path = folder / "scores.npy";
  auto const original = ha::load_npy(path);
  std::int64_t const features = scorer.features(0).count();
  auto const refused = [&](ha::ErrorDetail const& parts) {
    check_error<ha::FormatError>([&] { (void)ha::load_row_scorer(folder.path()); }, parts);
  };
  auto const write = [&](std::vector<std::int64_t> const& shape, std::vector<float> const& values) {
    ha::save_npy(path, ha::NpyArray::of<float>(shape, values));
  };
  std::vector<float> values(original.as<float>().begin(), original.as<float>().end());
  write({1, 2, features}, values);
  refused({"shape of weights", "[2, 1, ", "[1, 2, ", "scores.npy"});
  values[3] += 1;
  write({2, 1, features}, values);
  refused({"weights' hash", scorer.saved.weight_hash, "", "scores.npy"});
  values[5] = std::numeric_limits<float>::quiet_NaN();
  write({2, 1, features}, values);
  refused({"weight", "a finite number", "nan", "scores.npy, element 5"});
  ha::save_npy(path, ha::NpyArray::of<double>({2, 1, features}, std::vector<double>(values.size(), 1)));
  refused({"elements of weights", "<f4", "<f8", "scores.npy"});
  auto bytes = ha::format_npy(original);
  bytes.resize(bytes.size() - 4);
  ha::write_file(path, std::string_view(reinterpret_cast<char const*>(bytes.data()), bytes.size()));
  refused({"size of the elements", "", "", "scores.npy"});
  std::filesystem::remove(path);
  check_error<ha::FileError>([&] { (void)ha::load_row_scorer(folder.path()); }, {"cannot open", "", "", "scores.npy"});
}

TEST_CASE("weights that no file should hold are not written", "[tools]") {
  TemporaryFolder const folder;
  auto scorer = some_scorer(ha::ModelConfig{2, 2, 1, 4});
  scorer.weights[1][2] = std::numeric_limits<float>::infinity();
  check_error<ha::ArgumentError>([&] { ha::save_row_scorer(folder.path(), scorer); },
                                 {"weight", "a finite number", "inf", "save_row_scorer, layer 1"});
  scorer.weights[1].pop_back();
  check_error<ha::ArgumentError>([&] { ha::save_row_scorer(folder.path(), scorer); },
                                 {"weights", "", "", "save_row_scorer, layer 1"});
  CHECK(folder.entries() == 0);
}
