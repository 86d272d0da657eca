#include "tools/llama/unfinished_capture.hpp"

#include "tools/support/capture.hpp"
#include "tools/support/folder.hpp"

#include <headaware/error.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama_adapter {

namespace ha = headaware;

namespace {

/// Takes a word and a number off the beginning of a name. @return whether it began so
bool take_numbered(std::string_view& name, std::string_view word) {
  if (!name.starts_with(word)) return false;
  auto const end = name.find_first_not_of("0123456789", word.size());
  if (end == word.size() || end == std::string_view::npos) return false;
  name.remove_prefix(end);
  return true;
}

/// chunk12_k.npy, chunk12_layer3_k.npy and layer3_sinks.npy, as capture_attention names its arrays.
bool is_own_array(std::string_view name) {
  if (take_numbered(name, "layer")) return name == "_sinks.npy";
  if (!take_numbered(name, "chunk")) return false;
  take_numbered(name, "_layer");
  return name == "_q.npy" || name == "_k.npy" || name == "_v.npy";
}

/// The name of an array in a folder; nothing if there is none.
std::string any_array(std::filesystem::path const& folder) {
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".npy") return entry.path().filename().string();
  }
  return {};
}

/// Removes what an unfinished capture left.
void remove_chunks(std::filesystem::path const& folder) {
  std::vector<std::filesystem::path> chunks{folder / "tokens.json", folder / "capture.json"};
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    if (is_own_array(entry.path().filename().string())) chunks.push_back(entry.path());
  }
  for (auto const& path : chunks) std::filesystem::remove(path);
}

std::filesystem::path mark_of(std::filesystem::path const& folder) { return folder / capture::unfinished_name; }

/// The mark's file. @param[out] marked  whether it was there
int open_mark(std::filesystem::path const& folder, bool& marked) {
  support::make_folder(folder);
  auto const path = mark_of(folder);
  int file = -1;
  // Between the two another process may remove it.
  for (int tries = 0; file < 0 && tries < 8; ++tries) {
    file = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    marked = file < 0 && errno == EEXIST;
    if (marked) file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0 && errno != ENOENT) break;
  }
  if (file < 0) ha::throw_file_error("cannot create file", "a writable folder", path, errno);
  return file;
}

}  // namespace

UnfinishedCapture::UnfinishedCapture(std::filesystem::path folder)
    : folder_(std::move(folder)), mark_(open_mark(folder_, marked_)) {
  struct ::stat info {};
  bool const locked = ::flock(mark_.get(), LOCK_EX | LOCK_NB) == 0;
  if (!locked && errno != EWOULDBLOCK) {
    ha::throw_file_error("cannot lock file", "a folder whose files can be locked", mark_of(folder_), errno);
  }
  // Without a name it was another process's, which is done.
  if (!locked || ::fstat(mark_.get(), &info) != 0 || info.st_nlink == 0) {
    throw ha::ArgumentError(
        {"output_dir", "a folder that no other process captures into", "one that does", folder_.string()});
  }
  // Another process may have finished before the lock was this one's: its last file is there then.
  bool const again = marked_ && !std::filesystem::exists(folder_ / "capture.json");
  if (again) remove_chunks(folder_);
  // Arrays of another run would be taken for this one's.
  if (auto const array = any_array(folder_); !array.empty()) {
    if (!again) ::unlink(mark_of(folder_).c_str());
    throw ha::ArgumentError({"output_dir", "a folder without arrays", array + " in it", folder_.string()});
  }
  // Without arrays it is of none, and would make this capture look whole.
  std::filesystem::remove(folder_ / "capture.json");
  // Durable before the first array is.
  if (::fsync(mark_.get()) != 0) {
    ha::throw_file_error("cannot write file", "room for the file", mark_of(folder_), errno);
  }
  ha::flush_folder(folder_);
}

UnfinishedCapture::~UnfinishedCapture() {
  try {
    // What failed before its first array leaves nothing.
    if (any_array(folder_).empty()) std::filesystem::remove(mark_of(folder_));
  } catch (...) {
    return;  // the mark stays, and says so
  }
}

void UnfinishedCapture::finish() {
  std::filesystem::remove(mark_of(folder_));
  ha::flush_folder(folder_);
}

}  // namespace llama_adapter
