#include "tools/report/gallery.hpp"

#include "tools/report/gnuplot.hpp"
#include "tools/support/folder.hpp"

#include <headaware/io/file.hpp>

#include <algorithm>
#include <cstdio>

namespace report {

namespace ha = headaware;

std::vector<std::string> write_pictures(std::filesystem::path const& folder, Gallery const& gallery,
                                        std::span<char const* const> names) {
  support::make_folder(folder);
  for (char const* const name : names) {
    bool const drawn = std::any_of(gallery.pictures.begin(), gallery.pictures.end(),
                                   [&](Picture const& picture) { return picture.name == name; });
    if (!drawn) remove_picture(folder, name);
  }
  // First: should writing or drawing fail, those of an earlier run would not show today's numbers.
  for (auto const& picture : gallery.pictures) remove_drawings(folder, picture.name);
  for (auto const& data : gallery.data) ha::write_file(folder / data.name, data.text);
  for (auto const& picture : gallery.pictures) ha::write_file(folder / (picture.name + ".gp"), picture.script);

  std::vector<std::string> drawings;
  auto const gnuplot = find_gnuplot();
  for (auto const& picture : gallery.pictures) {
    if (!gnuplot) break;
    draw(*gnuplot, folder, picture.name);
    drawings.push_back(ha::read_text_file(folder / (picture.name + ".svg")));
  }
  if (!gnuplot) std::fprintf(stderr, "note: %s\n", gnuplot_missing);
  return drawings;
}

}  // namespace report
