// scores.json: read back as written, and everything else refused.

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/scores.hpp>

#include <limits>
#include <string>
#include <vector>

namespace ha = headaware;
using headaware_test::check_error;
using headaware_test::replaced;

namespace {

ha::SavedScores some_scores() {
  ha::SavedScores saved;
  saved.model = "tiny";
  saved.source = "tiny.gguf, 12 bytes; \"quoted\"";
  saved.shape = ha::ModelConfig{2, 4, 2, 8};
  saved.instruction = "\n\nRepeat.\n";
  saved.pieces = 3;
  saved.held_out = 1;
  saved.piece_tokens = 64;
  saved.floor = 1e-7;
  saved.layers = {{0.5, 0.75}, {-0.25, 1}};
  saved.overlap_share = 0.125;
  saved.overlap = 0.8;
  saved.overlap_by_head = 0.7;
  saved.budgets = {{0.125, 0.25}, {{0.25, 0.125, 0.125, 0}, {0.5, 0.25, 0.25, 0}}};
  saved.weight_files = {"scores.npy"};
  saved.weight_hash = "0123456789abcdef";
  return saved;
}

ha::SavedScores mixed_scores() {
  ha::SavedScores saved = some_scores();
  saved.shape = ha::ModelShape(
      {{.num_query_heads = 4, .num_kv_heads = 2, .head_dim = 8, .value_dim = 4},
       {.kind = ha::LayerKind::none},
       {.kind = ha::LayerKind::sliding, .num_query_heads = 2, .num_kv_heads = 2, .head_dim = 16, .window = 32}});
  saved.layers.push_back({});
  saved.weight_files = {"scores_0.npy", "scores_2.npy"};
  return saved;
}

void check_refused(std::string const& from, std::string const& to, ha::ErrorDetail const& parts) {
  std::string const text = replaced(ha::format_scores(some_scores()), from, to);
  check_error<ha::FormatError>([&] { (void)ha::parse_scores(text, "scores.json"); }, parts);
}

}  // namespace

TEST_CASE("scores are read as they were written", "[io]") {
  for (auto const& saved : {some_scores(), mixed_scores()}) {
    CHECK(ha::parse_scores(ha::format_scores(saved), "scores.json") == saved);
    headaware_test::TemporaryFolder const folder;
    ha::save_scores(folder / "scores.json", saved);
    CHECK(ha::load_scores(folder / "scores.json") == saved);
    CHECK(folder.entries() == 1);
  }
  check_error<ha::FileError>([] { (void)ha::load_scores("/nowhere/scores.json"); },
                             {"cannot open", "", "", "/nowhere"});
}

TEST_CASE("a text that is no document of scores is an error that names the place", "[io]") {
  check_refused("\"headaware.scores\"", "\"headaware.plan\"",
                {"format", "headaware.scores", "headaware.plan", "/format"});
  check_refused("\"version\": 1", "\"version\": 2", {"version", "1", "2", "/version"});
  check_refused("ln norms of values, 1", "1", {"features", "ln norms of values", "queries", "/features"});
  check_refused("\"pieces\": 3", "\"pieces\": 0", {"", "[1, ", "0", "/pieces"});
  check_refused("\"overlap\": 0.8", "\"overlap\": 1.5", {"out of range", "[0, 1]", "1.5", "/overlap"});
  check_refused("\"floor\": 1e-07", "\"floor\": null", {"wrong type", "a number", "null", "/floor"});
  check_refused("\"num_layers\": 2", "\"num_layers\": 3", {"layers of the runs", "3", "2", "/layers"});
  check_refused("\"head_dim\": 8", "\"head_dim\": 0", {"head_dim", "[1, ", "0", "scores.json"});
  check_refused("\"scores.npy\"", "\"../scores.npy\"",
                {"file of weights", "the name of a file", "../scores.npy", "scores.json"});
  check_refused("\"scores.npy\"", "\"a.npy\", \"b.npy\"", {"files of weights", "1", "2", "scores.json"});
  check_refused("\"share\": 0.25", "\"share\": 0.0625", {"share", "ascending", "0.0625", "scores.json"});
  check_refused("\"r2\": 0.5", "\"r3\": 0.5", {"missing field", "a number", "nothing", "/quality/0/r2"});
  std::string const text = ha::format_scores(some_scores());
  for (std::size_t const length : {std::size_t{0}, text.size() / 3, text.size() - 2}) {
    check_error<ha::FormatError>([&] { (void)ha::parse_scores(text.substr(0, length), "scores.json"); },
                                 {"", "", "", "scores.json"});
  }
}

TEST_CASE("scores that no file can hold are refused", "[io]") {
  auto const refused = [](ha::ErrorDetail const& parts, auto const& change) {
    ha::SavedScores saved = some_scores();
    change(saved);
    check_error<ha::ArgumentError>([&] { (void)ha::format_scores(saved); }, parts);
  };
  refused({"r2", "a finite number", "nan", "format_scores"},
          [](auto& s) { s.layers[1].r2 = std::numeric_limits<double>::quiet_NaN(); });
  refused({"overlap", "[0, 1]", "nan", "format_scores"},
          [](auto& s) { s.overlap = std::numeric_limits<double>::quiet_NaN(); });
  refused({"qualities of layers", "2", "1", "format_scores"}, [](auto& s) { s.layers.pop_back(); });
  refused({"KV heads of a budget", "4", "3", "format_scores"}, [](auto& s) {
    for (auto& heads : s.budgets.heads) heads.pop_back();
  });
  refused({"head_dim", "[1, ", "0", "format_scores"}, [](auto& s) { s.shape = ha::ModelConfig{2, 4, 2, 0}; });
  refused({"files of weights", "1", "0", "format_scores"}, [](auto& s) { s.weight_files.clear(); });
}
