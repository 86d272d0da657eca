#pragma once

// A picture of a figure over the size of a KV cache: a line per method, and where the full cache has it.

#include "tools/report/gallery.hpp"

#include <optional>
#include <string>
#include <vector>

namespace report {

struct SizePoint {
  double percent = 0;  ///< of all there is, bytes of a full cache in 16 bits unless the picture says otherwise
  double value = 0;
};

struct SizeCurve {
  std::string name;   ///< of the method
  std::string color;  ///< "#RRGGBB"
  std::vector<SizePoint> points;
};

struct SizePicture {
  std::string name;  ///< of its files
  std::string title;
  std::string subtitle;                                               ///< what was measured on what
  std::string figure;                                                 ///< of the vertical axis, with its unit
  std::string size = "bytes held, of the full cache in 16 bits (%)";  ///< of the horizontal axis
  std::string reading;                                                ///< one sentence: how to read it
  std::vector<SizeCurve> curves;
  std::optional<double> full{};  ///< figure of the cache that keeps everything, in 16 bits
  double full_mib = 0;           ///< its bytes; 0: no such axis
  bool from_zero = false;        ///< of the vertical axis, else logarithmic where values lie far apart
};

/// Adds a picture and its data; nothing where no curve has a point.
void add_size_picture(SizePicture const& picture, Gallery& gallery);

}  // namespace report
