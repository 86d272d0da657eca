#pragma once

// Shared by all pictures: colours, the head of each script, and text from templates.

#include <headaware/classify/head_type.hpp>

#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace report {

/// By HeadType; told apart by colour-blind readers, too (Okabe and Ito's palette, and a grey).
inline constexpr std::array<std::string_view, headaware::num_head_types> type_colors{
    "#0072B2", "#009E73", "#56B4E9", "#D55E00", "#B0B0B0", "#CC79A7", "#F0E442"};

inline constexpr std::string_view full_color = "#D9D9D9";
inline constexpr std::string_view prune_color = "#CC79A7";

/// Text and axes. The page replaces it by its own text colour, so that pictures follow a dark theme.
inline constexpr std::string_view ink = "#222222";

/// "sink_positional" as people read it.
[[nodiscard]] std::string readable(headaware::HeadType type);

/// A number as printf writes it.
[[nodiscard]] std::string number(char const* format, double value);

/// The template with each @NAME@ replaced.
[[nodiscard]] std::string fill(std::string_view text,
                               std::initializer_list<std::pair<std::string_view, std::string>> values);

/// @brief A whole script that draws one picture as SVG and PNG.
/// @param name    of script and pictures
/// @param body    gnuplot commands that set up and plot once
/// @param width, height  pixels of the SVG; the PNG has twice as many
[[nodiscard]] std::string script(std::string_view name, int width, int height, std::string_view body);

struct LegendEntry {
  std::string_view color;
  std::string text;
};

struct LegendPlace {
  int width, height;  ///< of the picture; all in pixels
  int left, bottom;   ///< of the first entry, from the lower left corner; rows go down
  int columns, column_width, row_height;
};

/// @brief A legend at fixed places: gnuplot's own stacks its entries where it thinks that a row is too long.
[[nodiscard]] std::string legend(std::vector<LegendEntry> const& entries, LegendPlace const& place);

/// `set palette` with viridis, which gnuplot knows by name only since 5.5.
[[nodiscard]] std::string viridis();

}  // namespace report
