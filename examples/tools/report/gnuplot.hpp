#pragma once

// Runs gnuplot, found in PATH.

#include <filesystem>
#include <optional>
#include <string>

namespace report {

/// Advice where there is no gnuplot.
inline constexpr char const* gnuplot_missing =
    "gnuplot is not in PATH, so no pictures were drawn: install it (Debian and Ubuntu: apt-get install gnuplot-nox; "
    "macOS: brew install gnuplot) and run this again, or run the scripts in the folder 'pictures' yourself";

/// The program's path, if there is one.
[[nodiscard]] std::optional<std::filesystem::path> find_gnuplot();

/// @brief Runs `folder/name.gp`, which makes `name.svg` and `name.png`, each whole or not at all.
/// @throws Error with gnuplot's words if it fails, or if a picture lacks its end; FileError
void draw(std::filesystem::path const& gnuplot, std::filesystem::path const& folder, std::string const& name);

/// Removes the drawings of an earlier run, which would not show today's numbers.
void remove_drawings(std::filesystem::path const& folder, std::string const& name);

/// The same with script and data, where today there is no such picture.
void remove_picture(std::filesystem::path const& folder, std::string const& name);

}  // namespace report
