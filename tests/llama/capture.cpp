// The program capture_attention, run as a user would, and the reader of what it writes.

#include "tools/support/capture.hpp"

#include "llama/models.hpp"
#include "support/errors.hpp"
#include "tools/llama/unfinished_capture.hpp"

#include <headaware/element.hpp>

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace ha = headaware;
using namespace headaware_test;

namespace {

/// Runs the program; its messages go to `log`. @return whether it ended well
bool run_program(std::string const& arguments, std::filesystem::path const& log) {
  std::string const command = HEADAWARE_CAPTURE_PROGRAM " " + arguments + " 2> '" + log.string() + "'";
  return std::system(command.c_str()) == 0;
}

std::string quoted(std::filesystem::path const& path) { return "'" + path.string() + "'"; }

/// ‖a − b‖ / ‖b‖.
double relative_difference(ha::NpyArray const& a, ha::NpyArray const& b) {
  REQUIRE(a.shape == b.shape);
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.as<ha::float16>().size(); ++i) {
    double const x = ha::to_float(a.as<ha::float16>()[i]);
    double const y = ha::to_float(b.as<ha::float16>()[i]);
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return std::sqrt(difference / norm);
}

}  // namespace

TEST_CASE("a capture agrees with an independent one of the same text") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto const independent = capture::load_arrays(shared_data() / "smollm2-135m");
  auto const model = model_path(smollm2);
  TemporaryFolder const folder;
  REQUIRE(run_program("--model " + quoted(model) + " --exact --cache_dir " + quoted(model.parent_path() / "exact") +
                          " --text " + quoted(shared_data() / "text" / "wikitext-2-test.txt") +
                          " --chunk_size 512 --max_tokens 812 --output_dir " + quoted(folder / "capture"),
                      folder / "log"));
  CHECK(ha::read_text_file(folder / "log").find("chunk 2 of 2, 812 tokens") != std::string::npos);
  auto const text = [](std::filesystem::path const& path) { return nlohmann::json::parse(ha::read_text_file(path)); };
  CHECK(text(folder / "capture/tokens.json") == text(shared_data() / "smollm2-135m/tokens.json"));

  auto const own = capture::load_arrays(folder / "capture");
  CHECK(own.layers == independent.layers);
  CHECK(own.scale == 0.125F);
  CHECK(independent.scale == 0.125F);
  CHECK(own.soft_cap == 0);
  CHECK(own.sliding_windows == std::vector<std::int32_t>(30, 0));
  CHECK(own.first_position == 0);
  CHECK(own.architecture == "llama");
  CHECK(own.num_layers == 30);
  REQUIRE(own.sequences.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    auto const& a = own.sequences[i];
    auto const& b = independent.sequences[i];
    REQUIRE(a.queries.has_value());
    REQUIRE(b.queries.has_value());
    double const queries = relative_difference(*a.queries, *b.queries);
    double const keys = relative_difference(a.keys, b.keys);
    double const values = relative_difference(a.values, b.values);
    std::printf("%s: relative difference of queries %.1e, keys %.1e, values %.1e\n", a.name.c_str(), queries, keys,
                values);
    CHECK(queries < 1e-3);
    CHECK(keys < 1e-3);
    CHECK(values < 1e-3);
  }
}

TEST_CASE("layers and a sliding window are written down, each sequence begins with a BOS token") {
  HEADAWARE_REQUIRE_MODEL(gemma3);
  auto const model = model_path(gemma3);
  TemporaryFolder const folder;
  std::string text;
  for (int i = 0; i < 60; ++i)
    text += "Line " + std::to_string(i) + " of a text that is long enough to see a window.\n";
  ha::write_file(folder / "text.txt", text);
  std::string const arguments = "--model_id " + quoted(model) + " --text " + quoted(folder / "text.txt") +
                                " --chunk_size 530 --max_tokens 600 --layers 5,4 --output_dir " +
                                quoted(folder / "capture");
  INFO(arguments);
  REQUIRE(run_program(arguments, folder / "log"));
  auto const own = capture::load_arrays(folder / "capture");
  CHECK(own.layers == std::vector<std::int32_t>{4, 5});
  CHECK(own.sliding_windows == std::vector<std::int32_t>{512, 0});
  CHECK(own.scale == 1);
  CHECK(own.architecture == "gemma3");
  REQUIRE(own.sequences.size() == 2);
  CHECK(own.sequences[0].keys.shape == std::vector<std::int64_t>{2, 1, 530, 256});
  CHECK(own.sequences[0].queries->shape == std::vector<std::int64_t>{2, 4, 530, 256});
  CHECK(own.sequences[1].keys.shape == std::vector<std::int64_t>{2, 1, 72, 256});
  auto const tokens = nlohmann::json::parse(ha::read_text_file(folder / "capture/tokens.json")).at("tokens");
  CHECK(tokens[0][0] == tokens[1][0]);

  // A second run would mix its arrays with these.
  CHECK_FALSE(run_program(arguments, folder / "log"));
  CHECK(ha::read_text_file(folder / "log").find("a folder without arrays") != std::string::npos);
}

TEST_CASE("a capture that was killed is no capture, and is made again in its folder") {
  HEADAWARE_REQUIRE_MODEL(smollm2);
  TemporaryFolder const folder;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "Line " + std::to_string(i) + " of a text that takes a while to read.\n";
  ha::write_file(folder / "text.txt", text);
  auto const capture_folder = folder / "capture";
  std::string const arguments = "--model " + quoted(model_path(smollm2)) + " --text " + quoted(folder / "text.txt") +
                                " --chunk_size 100 --max_tokens 400 --layers 3,7 --output_dir " +
                                quoted(capture_folder);
  // Killed when one of the chunks is there; while it runs, no other may capture into the folder.
  std::string const other =
      std::string(HEADAWARE_CAPTURE_PROGRAM) + " " + arguments + " 2> " + quoted(folder / "other");
  std::string const command = HEADAWARE_CAPTURE_PROGRAM " " + arguments + " 2> " + quoted(folder / "log") +
                              " & run=$!; while [ ! -e " + quoted(capture_folder / "chunk0_v.npy") +
                              " ]; do kill -0 $run || exit 1; sleep 0.01; done; kill -STOP $run; " + other +
                              " && exit 2; kill -KILL $run; wait $run; exit 0";
  REQUIRE(std::system(command.c_str()) == 0);
  CHECK(ha::read_text_file(folder / "other").find("no other process captures into") != std::string::npos);
  REQUIRE_FALSE(std::filesystem::exists(capture_folder / "capture.json"));
  check_error<ha::FormatError>([&] { (void)capture::load_arrays(capture_folder); },
                               {"capture", "a whole one", "capture_attention makes it again", "capture.unfinished"});

  REQUIRE(run_program(arguments, folder / "log"));
  auto const arrays = capture::load_arrays(capture_folder);
  CHECK(arrays.layers == std::vector<std::int32_t>{3, 7});
  CHECK(arrays.num_layers == 30);
  CHECK(arrays.sequences.size() == 4);

  // A user's own arrays are never removed, not even where a capture was interrupted.
  std::filesystem::remove(capture_folder / "capture.json");
  ha::write_file(capture_folder / capture::unfinished_name, "");
  std::filesystem::rename(capture_folder / "chunk0_k.npy", capture_folder / "mine_k.npy");
  CHECK_FALSE(run_program(arguments, folder / "log"));
  CHECK(ha::read_text_file(folder / "log").find("mine_k.npy in it") != std::string::npos);
  CHECK(std::filesystem::exists(capture_folder / "mine_k.npy"));
}

TEST_CASE("what stands in a marked folder decides whether a capture was interrupted there") {
  TemporaryFolder const folder;
  auto const mark = folder / capture::unfinished_name;
  for (char const* const name : {"chunk0_k.npy", "tokens.json", "capture.json"}) ha::write_file(folder / name, "");
  // A whole one's mark, opened by a process that the other one overtook: its arrays stay.
  ha::write_file(mark, "");
  check_error<ha::ArgumentError>([&] { llama_adapter::UnfinishedCapture{folder.path()}; },
                                 {"output_dir", "a folder without arrays", "chunk0_k.npy in it", ""});
  CHECK(std::filesystem::exists(folder / "chunk0_k.npy"));
  CHECK_FALSE(std::filesystem::exists(mark));
  // A capture.json without arrays is no sign of the new capture's end.
  std::filesystem::remove(folder / "chunk0_k.npy");
  {
    llama_adapter::UnfinishedCapture const begun(folder.path());
    ha::write_file(folder / "chunk0_k.npy", "");
  }
  CHECK(std::filesystem::exists(mark));
  { llama_adapter::UnfinishedCapture const again(folder.path()); }
  CHECK_FALSE(std::filesystem::exists(folder / "chunk0_k.npy"));
}

TEST_CASE("what cannot be captured is said") {
  TemporaryFolder const folder;
  ha::write_file(folder / "text.txt", "Too short.");
  auto const message = [&](std::string const& arguments) {
    CHECK_FALSE(run_program(
        arguments + " --text " + quoted(folder / "text.txt") + " --output_dir " + quoted(folder / "capture"),
        folder / "log"));
    return ha::read_text_file(folder / "log");
  };
  CHECK(message("--model HuggingFaceTB/SmolLM2-135M").find("download its GGUF file") != std::string::npos);
  HEADAWARE_REQUIRE_MODEL(smollm2);
  auto const model = "--model " + quoted(model_path(smollm2));
  CHECK(message(model).find("text: expected at least 10 tokens") != std::string::npos);
  CHECK(message(model + " --layers 30").find("layer: expected in [0, 30), got 30 (--layers)") != std::string::npos);
}

TEST_CASE("folders without a description, or with an old one, are read as before") {
  TemporaryFolder const folder;
  std::vector<ha::float16> const elements(2 * 1 * 3 * 4);
  auto const array = ha::NpyArray::of({2, 1, 3, 4}, std::span<ha::float16 const>(elements));
  for (std::string const name : {"chunk10", "chunk2"}) {
    ha::save_npy(folder / (name + "_k.npy"), array);
    ha::save_npy(folder / (name + "_v.npy"), array);
  }
  auto arrays = capture::load_arrays(folder.path());
  CHECK(arrays.layers == std::vector<std::int32_t>{0, 1});
  CHECK(arrays.scale == 0.5F);
  CHECK(arrays.sliding_windows == std::vector<std::int32_t>{0, 0});
  REQUIRE(arrays.sequences.size() == 2);
  CHECK(arrays.sequences[0].name == "chunk2");
  CHECK_FALSE(arrays.sequences[0].queries.has_value());

  ha::write_file(folder / "capture.json", R"({"layers": [3, 7]})");
  CHECK(capture::load_arrays(folder.path()).layers == std::vector<std::int32_t>{3, 7});

  auto const refused = [&](std::string const& json, ha::ErrorDetail const& parts) {
    ha::write_file(folder / "capture.json", json);
    check_error<ha::FormatError>([&] { (void)capture::load_arrays(folder.path()); }, parts);
  };
  refused(R"({"layers": [3]})", {"captured layers", "2", "1 named", "capture.json"});
  refused(R"({"layers": [3, 7], "model": {"num_layers": 7}})", {"captured layers", "2 layers of 7", "", ""});
  refused(R"({"sliding_windows": [1]})", {"sliding_windows", "2", "1", "capture.json"});
  refused(R"({"scale": 0})", {"capture.json", "a number > 0", "0", "/scale"});
  refused(R"({"scale": "large"})", {"capture.json", "", "", "capture.json"});
  // Numbers are taken as they are written or not at all.
  refused(R"({"layers": [3, 4294967303]})", {"capture.json", "2147483647", "4294967303", "/layers/1"});
  refused(R"({"layers": [3, 6.5]})", {"capture.json", "an integer", "6.5", "/layers/1"});
  refused(R"({"layers": [3, true]})", {"capture.json", "an integer", "true", "/layers/1"});
  refused(R"({"first_position": 99999999999999999999})", {"capture.json", "an integer", "99999999999999999999", ""});
  refused(R"({"scale": 1e300})", {"capture.json", "a number > 0", "1e300", "/scale"});
  refused(R"({"soft_cap": -1})", {"capture.json", "a number >= 0", "-1", "/soft_cap"});
  refused("[", {"capture.json", "", "", "capture.json"});

  std::filesystem::remove(folder / "capture.json");
  ha::save_npy(folder / "chunk2_q.npy", ha::NpyArray::of({2, 2, 3, 2}, std::span<ha::float16 const>(elements)));
  check_error<ha::FormatError>([&] { (void)capture::load_arrays(folder.path()); },
                               {"captured arrays", "", "", "chunk2"});
  check_error<ha::FileError>([&] { (void)capture::load_arrays(folder / "none"); }, {"capture", "a folder", "", "none"});
}
