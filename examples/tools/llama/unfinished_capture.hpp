#pragma once

// The mark of a capture that is not whole (support/capture.hpp).

#include <headaware/io/file.hpp>

#include <filesystem>

namespace llama_adapter {

/// Marks a folder while arrays are written to it; the mark outlives a process that is killed.
class UnfinishedCapture {
 public:
  /// @brief Makes folder and mark. What an unfinished capture left there is removed; arrays beside a
  ///        capture.json are a whole one's, and stay.
  /// @throws ArgumentError if the folder holds other arrays, or another process captures into it; FileError
  explicit UnfinishedCapture(std::filesystem::path folder);
  UnfinishedCapture(UnfinishedCapture const&) = delete;
  UnfinishedCapture& operator=(UnfinishedCapture const&) = delete;
  ~UnfinishedCapture();

  /// Everything is there: removes the mark. @throws FileError
  void finish();

 private:
  std::filesystem::path folder_;
  bool marked_ = false;             ///< before this capture
  headaware::FileDescriptor mark_;  ///< locked as long as the process lives
};

}  // namespace llama_adapter
