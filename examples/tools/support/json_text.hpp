#pragma once

// JSON documents of the programs as text and files.

#include <headaware/io/file.hpp>

#include <nlohmann/json.hpp>

#include <string>

namespace support {

/// Returns the text of a document. Bytes of a string that are not UTF-8, such as a path or a model's name may have,
/// become U+FFFD: JSON cannot hold them, and the results of a long run must not be lost for them.
template <class Json>
[[nodiscard]] std::string json_text(Json const& document, int indent = -1) {
  return document.dump(indent, ' ', false, Json::error_handler_t::replace);
}

/// Returns a string as it reads once it was written.
[[nodiscard]] inline std::string as_written(std::string const& text) {
  return nlohmann::json::parse(json_text(nlohmann::json(text))).get<std::string>();
}

/// Writes a document as a file for people to read too. @throws headaware::FileError
template <class Json>
void write_json(headaware::FilePath const& path, Json const& document) {
  headaware::write_file(path, json_text(document, 2) + "\n");
}

}  // namespace support
