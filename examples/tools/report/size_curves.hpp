#pragma once

// A picture of a figure over the size of a KV cache: a line per method, and where the full cache has it.

#include "tools/report/gallery.hpp"

#include <optional>
#include <string>
#include <vector>

namespace report {

struct SizePoint {
  double tokens = 0;  ///< kept, mean of a KV head
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
  std::string subtitle;  ///< what was measured on what
  std::string figure;    ///< of the vertical axis, with its unit
  std::string reading;   ///< one sentence: how to read it
  std::vector<SizeCurve> curves;
  std::optional<SizePoint> full{};  ///< the cache that keeps everything
  double mib_per_token = 0;         ///< cost of one token per KV head in all; 0: no such axis
  bool from_zero = false;           ///< of the vertical axis, else logarithmic where values lie far apart
};

/// Adds a picture and its data; nothing where no curve has a point.
void add_size_picture(SizePicture const& picture, Gallery& gallery);

}  // namespace report
