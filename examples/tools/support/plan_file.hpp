#pragma once

// Tells files that a planner made from classes that rules made.

#include <headaware/io/file.hpp>

#include <filesystem>
#include <string>

namespace support {

/// @throws headaware::FileError if it cannot be read
inline bool is_plan(std::filesystem::path const& file) {
  return headaware::read_text_file(file).find("headaware.plan") != std::string::npos;
}

/// A plan, or the classifications that lie beside it.
/// @throws headaware::FileError if it cannot be read
inline bool is_of_a_plan(std::filesystem::path const& file) {
  return is_plan(file) || file.filename() == "plan_classifications.json";
}

}  // namespace support
