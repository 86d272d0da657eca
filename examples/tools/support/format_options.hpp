#pragma once

// Formats that the commands take: which a plan chooses among, and which a file's heads have.

#include <headaware/error.hpp>
#include <headaware/format/table.hpp>
#include <headaware/io/file.hpp>
#include <headaware/io/policy_table.hpp>
#include <headaware/model_shape.hpp>
#include <headaware/plan/format_choice.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace support {

/// Formats that a plan chooses among.
struct FormatsWanted {
  bool measured = true;                         ///< all whose errors the statistics hold, and 16 bits
  std::vector<headaware::HeadFormats> pairs{};  ///< else these; none: 16 bits alone

  /// @param names  of formats whose errors are known
  [[nodiscard]] std::vector<headaware::HeadFormats> of(std::vector<std::string> const& names) const {
    if (!measured) return pairs;
    return names.empty() ? std::vector<headaware::HeadFormats>{} : headaware::all_format_pairs(names);
  }
};

/// "packed5/packed4": formats of keys and of values; one name stands for both.
/// @throws ArgumentError naming the known formats
inline headaware::HeadFormats parse_format_pair(std::string const& text) {
  auto const slash = text.find('/');
  std::string const key = text.substr(0, slash);
  return headaware::format_pair(key, slash == std::string::npos ? key : text.substr(slash + 1));
}

/// "measured", "16", pairs, or names, which stand for all pairs of them.
inline FormatsWanted parse_formats(std::vector<std::string> const& texts) {
  if (texts.size() == 1 && texts.front() == "measured") return {};
  FormatsWanted wanted{.measured = false};
  if (texts.size() == 1 && texts.front() == "16") return wanted;
  for (std::string const& text : texts) {
    headaware::require(text != "16" && text != "measured", "--formats",
                       "names of formats, pairs of them, or measured or 16 alone", {text, " beside others"},
                       "--formats");
  }
  bool const pairs = std::any_of(texts.begin(), texts.end(),
                                 [](std::string const& text) { return text.find('/') != std::string::npos; });
  if (!pairs) {
    wanted.pairs = headaware::format_pairs(texts, texts);
  } else {
    for (std::string const& text : texts) wanted.pairs.push_back(parse_format_pair(text));
  }
  return wanted;
}

/// Declares --formats. @return the option
/// @param usual  what `wanted` holds
inline CLI::Option* add_formats(CLI::App& app, FormatsWanted& wanted, char const* usual = "measured") {
  return app
      .add_option_function<std::vector<std::string>>(
          "--formats", [&wanted](std::vector<std::string> const& texts) { wanted = parse_formats(texts); },
          "formats of rows that heads may have, chosen with their windows under one budget of bytes: measured (all "
          "whose errors the statistics hold, and 16 bits), 16 (bits alone), names (all pairs of them for keys and "
          "values), or pairs such as packed5/packed4; analyze_attention --plan measures those, too")
      ->delimiter(',')
      ->default_str(usual);
}

/// Formats that a plan's file gives the heads; empty: it gives none, as files of classes do.
/// @throws as `load_format_table`
inline headaware::FormatTable formats_of_file(std::filesystem::path const& path, headaware::ModelShape const& model) {
  auto formats = headaware::load_format_table(path, model);
  for (std::int32_t layer = 0; layer < formats.num_layers(); ++layer) {
    for (std::int32_t head = 0; head < formats.heads().count(layer); ++head) {
      if (!headaware::has_sixteen_bits(formats.at(layer, head))) return formats;
    }
  }
  return {};
}

}  // namespace support
