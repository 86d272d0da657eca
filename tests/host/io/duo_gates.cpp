#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

#include <headaware/io/duo_gates.hpp>

#include <string>
#include <vector>

namespace ha = headaware;

namespace {

constexpr auto config = R"({"sink_size": 128, "recent_size": 256, "deploy_sink_size": null})";

ha::DuoGates parse(std::string const& table, std::string const& settings = config) {
  return ha::parse_duo_gates(table, settings, "gates.tsv", "config.json");
}

void check_rejected(std::string const& table, std::string const& settings, ha::ErrorDetail const& parts) {
  headaware_test::check_error<ha::FormatError>([&] { (void)parse(table, settings); }, parts);
}

}  // namespace

TEST_CASE("gates are read by layer and KV head", "[io]") {
  ha::DuoGates const expected{2, 3, {0.5, -1e-3, 1, 0, 2, 0.25}, 128, 256};
  CHECK(parse("5.0e-01\t-1e-3\t1\n0\t2\t0.25\n") == expected);
  CHECK(parse("5.0e-01\t-1e-3\t1\r\n0\t2\t0.25") == expected);
  auto const deployed =
      parse("1", R"({"sink_size": 128, "recent_size": 256, "deploy_sink_size": 64, "deploy_recent_size": 32})");
  CHECK(deployed.sink_size == 64);
  CHECK(deployed.recent_size == 32);
}

TEST_CASE("a table that holds no gates is one error", "[io]") {
  auto check = [](std::string const& table, ha::ErrorDetail const& parts) { check_rejected(table, config, parts); };
  check("", {"no gates", "at least one row", "an empty table", "gates.tsv, row 1"});
  check("\n\n", {"no gates", "at least one row", "an empty table", "gates.tsv, row 1"});
  check("1\t2\n3\n", {"ragged row", "2 columns as in the first row", "1", "gates.tsv, row 2"});
  check("1\t2\n3\t4\t5\n", {"ragged row", "2 columns as in the first row", "3", "gates.tsv, row 2"});
  check("1\t2\n3\tx\n", {"not a gate", "a finite number", "\"x\"", "gates.tsv, row 2, column 2"});
  check("1\t\t2\n", {"not a gate", "a finite number", "\"\"", "row 1, column 2"});
  check("1\t2\n\n3\t4\n", {"not a gate", "a finite number", "\"\"", "row 2, column 1"});
  check("1 2\n", {"not a gate", "a finite number", "\"1 2\"", "row 1, column 1"});
  check("nan\n", {"not a gate", "a finite number", "\"nan\"", "row 1, column 1"});
  check("1\tinf\n", {"not a gate", "a finite number", "\"inf\"", "row 1, column 2"});
  check("1e999\n", {"not a gate", "a finite number", "\"1e999\"", "row 1, column 1"});
  std::string many;
  for (int i = 0; i <= 1 << 20; ++i) many += "0\n";
  check(many, {"too many gates", "at most 1048576", "more", "row 1048577"});
}

TEST_CASE("settings without sizes are one error", "[io]") {
  check_rejected("1", "{}", {"missing field", "an integer", "nothing", "config.json, line 1, column 1: /sink_size"});
  check_rejected("1", R"({"sink_size": 4})", {"missing field", "an integer", "nothing", "/recent_size"});
  check_rejected("1", R"({"sink_size": -4, "recent_size": 8})", {"out of range", "[0, ", "-4", "/sink_size"});
  check_rejected("1", R"({"sink_size": 4, "recent_size": 0})", {"out of range", "[1, ", "0", "/recent_size"});
  check_rejected("1", R"({"sink_size": 4, "recent_size": 1e12})", {"not an integer", "[1, ", "1e12", "/recent_size"});
  check_rejected("1", R"({"sink_size": 4, "recent_size": 10000000000})",
                 {"out of range", "[1, ", "10000000000", "/recent_size"});
  check_rejected("1", R"({"sink_size": 4, "recent_size": 8, "deploy_recent_size": "8"})",
                 {"wrong type", "an integer", "\"8\"", "/deploy_recent_size"});
}

TEST_CASE("a folder without gates is an error that names the file", "[io]") {
  headaware_test::TemporaryFolder const folder;
  headaware_test::check_error<ha::FileError>([&] { (void)ha::load_duo_gates(folder.path()); },
                                             {"cannot open", "", "No such file", "full_attention_heads.tsv"});
  ha::write_file(folder / "full_attention_heads.tsv", "1\n");
  headaware_test::check_error<ha::FileError>([&] { (void)ha::load_duo_gates(folder.path()); },
                                             {"cannot open", "", "No such file", "config.json"});
  ha::write_file(folder / "config.json", config);
  CHECK(ha::load_duo_gates(folder.path()).gates == std::vector<double>{1});
}

TEST_CASE("DuoAttention's published gates are read", "[io][data]") {
  HEADAWARE_REQUIRE_SHARED_DATA();
  auto check = [](char const* model, int num_kv_heads) {
    auto const gates = ha::load_duo_gates(headaware_test::shared_data() / "duo-attention" / model);
    CHECK(gates.num_layers == 32);
    CHECK(gates.num_kv_heads == num_kv_heads);
    CHECK(gates.gates.size() == static_cast<std::size_t>(32 * num_kv_heads));
    CHECK(gates.sink_size == 128);
    CHECK(gates.recent_size == 256);
  };
  check("Llama-2-7B-32K-Instruct", 32);
  check("Meta-Llama-3.1-8B-Instruct", 8);
  check("Mistral-7B-Instruct-v0.3", 8);
}
