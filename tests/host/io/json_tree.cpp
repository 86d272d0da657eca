// What any JSON reader of the library makes of text that is no JSON, seen through the smallest of them.

#include "support/catch.hpp"
#include "support/errors.hpp"

#include <headaware/io/json_tree.hpp>
#include <headaware/io/model_config.hpp>

#include <string>
#include <string_view>

namespace ha = headaware;
using ha::JsonKind;
using ha::JsonTree;

namespace {

void check_malformed(std::string_view text, std::string_view what, std::string_view expected, std::string_view got,
                     std::string_view where) {
  CAPTURE(text);
  headaware_test::check_error<ha::FormatError>(
      [&] { JsonTree const tree(text, "doc"); },
      {std::string(what), std::string(expected), std::string(got), std::string(where)});
}

}  // namespace

TEST_CASE("values of every kind are read", "[io][json]") {
  std::string const text =
      "\xEF\xBB\xBF { \"a\" : [1, -2.5e-1, true, false, null], \"b\": {}, \"c\": [] ,\t\"d\": \"x\"}\r\n";
  JsonTree const tree(text, "doc");
  auto root = tree.root().object();
  auto const array = root.get("a", "an array").array();
  REQUIRE(array.size() == 5);
  auto at = array.begin();
  CHECK((*at).integer(0, 9) == 1);
  CHECK((*at).number() == 1.0);
  CHECK((*++at).number() == -0.25);
  CHECK((*++at).boolean());
  CHECK_FALSE((*++at).boolean());
  CHECK((*++at).is_null());
  CHECK(root.get("d", "a string").string() == "x");
  CHECK(root.get("b", "an object").kind() == JsonKind::object);  // looking back works, too
  CHECK(root.get("c", "an array").array().size() == 0);
  CHECK_FALSE(root.find("e").has_value());
}

TEST_CASE("numbers keep every digit", "[io][json]") {
  auto number = [](std::string_view text) { return JsonTree(text, "doc").root().number(); };
  CHECK(number("0.1") == 0.1);
  CHECK(number("-0") == 0.0);
  CHECK(number("1E+2") == 100.0);
  CHECK(number("0.5277481079101562") == 0.5277481079101562);
  CHECK(number("9223372036854775807") == 9223372036854775807.0);
  CHECK(number("18446744073709551616") == 18446744073709551616.0);
  CHECK(number("4.9e-324") == 4.9e-324);
  CHECK(number("1.7976931348623157e308") == 1.7976931348623157e308);
}

TEST_CASE("escapes in strings and keys are decoded", "[io][json]") {
  JsonTree const tree(R"({"\u0061\"\\\/\b\f\n\r\t": "\u00e4\u20ac\ud83d\ude00"})", "doc");
  auto root = tree.root().object();
  CHECK(root.get("a\"\\/\b\f\n\r\t", "a string").string() == "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80");
}

TEST_CASE("malformed JSON is one error that says where", "[io][json]") {
  check_malformed("", "malformed JSON", "a value", "the end of the file", "doc, line 1, column 1");
  check_malformed("{\"a\": [1,\n  2", "malformed JSON", "',' or ']'", "the end of the file",
                  "doc, line 2, column 4: /a");
  check_malformed("{\"a\": [1,\n  2 3]}", "malformed JSON", "',' or ']'", "'3'", "line 2, column 5: /a");
  check_malformed("{\"a\": [1, NaN]}", "malformed JSON", "a value", "'NaN'", "line 1, column 11: /a/1");
  check_malformed("{\"a\": {\"b\": -Infinity}}", "malformed JSON", "a value", "'-Infinity'", "column 13: /a/b");
  check_malformed("[1, 2", "malformed JSON", "',' or ']'", "the end of the file", "line 1, column 6");
  check_malformed("[1, ]", "malformed JSON", "a value", "']'", "column 5: /1");
  check_malformed("{\"a\": 1, }", "malformed JSON", "a key in quotes", "'}'", "column 10");
  check_malformed("{\"x\": {\"a\" 1}}", "malformed JSON", "':'", "'1'", "column 12: /x/a");
  check_malformed("{a: 1}", "malformed JSON", "a key in quotes", "'a'", "column 2");
  check_malformed("{\"a\": 1", "malformed JSON", "',' or '}'", "the end", "column 8");
  check_malformed("{} {}", "malformed JSON", "the end of the document", "'{'", "column 4");
  check_malformed("[tru]", "malformed JSON", "a value", "'tru'", "/0");
  check_malformed("[truest]", "malformed JSON", "a value", "'truest'", "/0");
  check_malformed("[1] x", "malformed JSON", "the end of the document", "'x'", "column 5");
  for (std::string const number : {"01", "-", "1.", ".5", "+1", "1e", "1e+", "0x1", "1.5.2", "--1", "1_000"}) {
    check_malformed("[" + number + "]", "malformed JSON", "a value", "'" + number + "'", "column 2: /0");
  }
}

TEST_CASE("malformed strings are an error", "[io][json]") {
  check_malformed("[\"abc", "malformed JSON", "'\"'", "the end of the file", "/0");
  check_malformed("[\"abc\\", "malformed JSON", "an escape", "the end of the file", "/0");
  check_malformed("[\"a\\n", "malformed JSON", "'\"'", "the end of the file", "/0");
  check_malformed("[\"a\\x\"]", "malformed JSON", "an escape sequence", "'x'", "/0");
  check_malformed("[\"a\\u12\"]", "malformed JSON", "four hexadecimal digits", "'12'", "/0");
  check_malformed("[\"a\\u12", "malformed JSON", "four hexadecimal digits", "'12'", "/0");
  check_malformed("[\"\\ud800x\"]", "malformed JSON", "surrogate", "'x'", "/0");
  check_malformed("[\"\\ud800\\u0041\"]", "malformed JSON", "surrogate", "'\"'", "/0");
  check_malformed("[\"\\udc00\"]", "malformed JSON", "surrogate", "'\"'", "/0");
  check_malformed("[\"a\nb\"]", "malformed JSON", "no control character", "'\\x0a'", "/0");
  check_malformed("{\"k\": 1, \"a\nb\": 1}", "malformed JSON", "no control character", "'\\x0a'", "line 1, column 12");
}

TEST_CASE("numbers that no double holds are an error", "[io][json]") {
  check_malformed("[0, 1e999]", "number out of range", "a double", "1e999", "column 5: /1");
  check_malformed("[-1e999]", "number out of range", "a double", "-1e999", "/0");
  std::string const digits(400, '9');
  check_malformed("[" + digits + "]", "number out of range", "a double", "9999", "/0");
}

TEST_CASE("a key that stands twice is an error", "[io][json]") {
  check_malformed(R"({"a": 1, "b": {"c": 1, "\u0063": 2}})", "duplicate key", "each key once", "\"c\" again",
                  "column 24: /b/c");
  std::string many = "{\"k0\": 0";
  for (int i = 1; i < 40; ++i) many += ", \"k" + std::to_string(i) + "\": 0";
  JsonTree const fine(many + "}", "doc");
  check_malformed(many + ", \"k7\": 1}", "duplicate key", "each key once", "\"k7\" again", "/k7");
}

TEST_CASE("nesting has a limit, so that the stack has one", "[io][json]") {
  JsonTree const fine(std::string(64, '[') + std::string(64, ']'), "doc");
  check_malformed(std::string(65, '[') + std::string(65, ']'), "nesting too deep", "64", "one more", "column 65");
  check_malformed(std::string(1000000, '['), "nesting too deep", "64", "one more", "column 65: /0/0");
}

TEST_CASE("what stands in a message is printable and short", "[io][json]") {
  check_malformed("[\x01\xff]", "malformed JSON", "a value", "'\\x01'", "/0");
  check_malformed("{\"~/\xff\": x}", "malformed JSON", "a value", "'x'", ": /~0~1\\xff");
  CHECK(ha::detail::quoted(std::string(100, 'x')).size() == 45);
}

TEST_CASE("values of the wrong kind are an error at their place", "[io][json]") {
  JsonTree const tree(R"({"a": [1.5, "s", null, {}, [1, 2], 7]})", "doc");
  auto const array = tree.root().object().get("a", "an array").array();
  auto at = array.begin();
  auto fails = [&](auto&& f, std::string what, std::string expected, std::string got, std::string where) {
    headaware_test::check_error<ha::FormatError>(f, {what, expected, got, where});
  };
  fails([&] { (void)(*at).integer(0, 9); }, "not an integer", "an integer in [0, 9]", "1.5", "/a/0");
  ++at;
  fails([&] { (void)(*at).number(); }, "wrong type", "a number", "\"s\"", "/a/1");
  ++at;
  fails([&] { (void)(*at).boolean(); }, "wrong type", "true or false", "null", "/a/2");
  ++at;
  fails([&] { (void)(*at).string(); }, "wrong type", "a string", "an object", "/a/3");
  fails([&] { (void)(*at).object().get("k", "a number"); }, "missing field", "a number", "nothing", "/a/3/k");
  ++at;
  fails([&] { (void)(*at).object(); }, "wrong type", "an object", "an array of 2", "/a/4");
  ++at;
  fails([&] { (void)(*at).integer(0, 6); }, "out of range", "an integer in [0, 6]", "7", "/a/5");
}
