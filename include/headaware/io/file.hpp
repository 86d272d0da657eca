#pragma once

/// @file
/// Reads whole files, and writes them whole or not at all.

#include <headaware/config.hpp>
#include <headaware/error.hpp>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

HEADAWARE_NAMESPACE_BEGIN

/// @brief Path of a file, from text or from anything with `.string()`, such as `std::filesystem::path`, whose header
/// costs more to compile than the rest of this one.
class FilePath {
 public:
  FilePath(char const* path) : text_(path) {}
  FilePath(std::string_view path) : text_(path) {}
  FilePath(std::string path) : text_(std::move(path)) {}
  template <class Path>
    requires requires(Path const& path) {
      { path.string() } -> std::convertible_to<std::string>;
    }
  FilePath(Path const& path) : text_(path.string()) {}

  [[nodiscard]] std::string const& string() const { return text_; }
  [[nodiscard]] char const* c_str() const { return text_.c_str(); }

  /// Name after the last slash.
  [[nodiscard]] std::string_view filename() const { return std::string_view(text_).substr(name_begin()); }
  /// Path before it; "." if there is none.
  [[nodiscard]] FilePath parent() const {
    std::size_t end = name_begin();
    if (end == 0) return ".";
    while (end > 1 && text_[end - 1] == '/') --end;
    return text_.substr(0, end);
  }
  friend FilePath operator/(FilePath const& folder, std::string_view name) {
    bool const joined = folder.text_.empty() || folder.text_.back() == '/';
    return folder.text_ + (joined ? "" : "/") + std::string(name);
  }

 private:
  [[nodiscard]] std::size_t name_begin() const { return text_.rfind('/') + 1; }

  std::string text_;
};

/// Bytes of text that a reader takes: far above any model's statistics.
inline constexpr std::size_t max_text_bytes = std::size_t{1} << 30;

/// @brief Throws `FileError` with the system's reason.
/// @param error  of errno
template <class = void>
[[noreturn]] void throw_file_error(char const* what, char const* expected, FilePath const& path, int error) {
  throw FileError({what, expected, std::strerror(error), path.string()});
}

/// @brief Owns a file descriptor.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor const&) = delete;
  FileDescriptor& operator=(FileDescriptor const&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

namespace detail {

/// @tparam Bytes  std::string or std::vector<std::byte>
template <class Bytes>
[[nodiscard]] Bytes read_whole(FilePath const& path, std::size_t max_bytes) {
  FileDescriptor const file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_file_error("cannot open file", "a readable file", path, errno);
  struct ::stat info {};
  if (::fstat(file.get(), &info) != 0) throw_file_error("cannot read file", "a readable file", path, errno);

  // The size is a hint: pipes have none, and a file may grow. The byte beyond it finds the end.
  bool const regular = S_ISREG(info.st_mode);
  auto const hint = info.st_size > 0 ? static_cast<std::size_t>(info.st_size) : 0;
  auto const check_size = [&](bool ok, Text const& got) {
    if (!ok) throw FileError({"file too large", Text{"at most ", max_bytes, " bytes"}.str(), got.str(), path.string()});
  };
  check_size(!regular || hint <= max_bytes, hint);
  Bytes bytes;
  bytes.resize(regular && hint >= 4096 ? hint + 1 : 4096);
  std::size_t used = 0;
  for (;;) {
    if (used == bytes.size()) bytes.resize(bytes.size() + bytes.size() / 2 + 1);
    ::ssize_t const got = ::read(file.get(), bytes.data() + used, bytes.size() - used);
    if (got == 0) break;
    if (got < 0) {
      if (errno == EINTR) continue;
      throw_file_error("cannot read file", "a readable file", path, errno);
    }
    used += static_cast<std::size_t>(got);
    check_size(used <= max_bytes, "more");
  }
  bytes.resize(used);
  return bytes;
}

/// Prefix of files that are not whole yet. Readers pass them over.
inline constexpr std::string_view temporary_prefix = ".headaware-";

/// Removes the files that killed processes left unfinished in a folder. Those less than a day old may be another
/// process's, on another machine too, and stay.
template <class = void>
void remove_stale_temporaries(FilePath const& folder) {
  ::DIR* const entries = ::opendir(folder.c_str());
  if (entries == nullptr) return;
  struct Closed {
    ::DIR* entries;
    ~Closed() { ::closedir(entries); }
  } const closed{entries};
  while (::dirent const* const entry = ::readdir(entries)) {
    if (!std::string_view(entry->d_name).starts_with(temporary_prefix)) continue;
    FilePath const path = folder / entry->d_name;
    struct ::stat info {};
    bool const stale = ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
                       std::time(nullptr) - info.st_mtime > std::time_t{24} * 3600;
    if (stale) ::unlink(path.c_str());
  }
}

}  // namespace detail

/// @brief Returns a name for a file that is not whole yet, in the folder of `target`: no other process takes it, and
/// readers pass it over. Give the file its own name by `finish_file`. Removes such files of killed processes first if
/// they are a day old.
template <class = void>
[[nodiscard]] FilePath unfinished_path(FilePath const& target) {
  static unsigned counter = 0;
  unsigned const count = __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
  FilePath const folder = target.parent();
  std::string_view name = target.filename();
  name.remove_prefix(name.size() > 100 ? name.size() - 100 : 0);  // names are 255 bytes at most
  detail::remove_stale_temporaries(folder);
  return folder / (std::string(detail::temporary_prefix) + std::to_string(::getpid()) + "-" + std::to_string(count) +
                   "-" + std::string(name));
}

/// @brief Makes a folder's names durable: without it a machine that stops may forget a rename.
/// @throws FileError
template <class = void>
void flush_folder(FilePath const& folder) {
  char const* const path = folder.string().empty() ? "." : folder.c_str();
  FileDescriptor const opened(::open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Folders that may be written but not read, and file systems that flush none, leave nothing to do.
  if (opened.get() < 0 || ::fsync(opened.get()) == 0 || errno == EINVAL || errno == ENOTSUP) return;
  throw_file_error("cannot flush folder", "a folder that keeps its names", folder, errno);
}

namespace detail {

/// `finish_file` of a file that is open as `fd`.
template <class = void>
void finish_file(int fd, FilePath const& unfinished, FilePath const& target) {
  if (fd < 0 || ::fsync(fd) != 0) throw_file_error("cannot write file", "room for the file", unfinished, errno);
  if (::rename(unfinished.c_str(), target.c_str()) != 0) {
    throw_file_error("cannot rename file", "a replaceable file", target, errno);
  }
  flush_folder(target.parent());
}

}  // namespace detail

/// @brief Gives a written file its own name, durably: its bytes are on disk before the name is, and the name when this
/// returns.
/// @throws FileError; `unfinished` is then still there, unless only the folder could not be flushed
template <class = void>
void finish_file(FilePath const& unfinished, FilePath const& target) {
  FileDescriptor const file(::open(unfinished.c_str(), O_RDONLY | O_CLOEXEC));
  detail::finish_file(file.get(), unfinished, target);
}

/// @brief Reads a whole file as text. @param max_bytes the largest size taken
/// @throws FileError naming the path and the system's reason
template <class = void>
[[nodiscard]] std::string read_text_file(FilePath const& path, std::size_t max_bytes = max_text_bytes) {
  return detail::read_whole<std::string>(path, max_bytes);
}

/// @brief Reads a whole file as bytes, aligned for any element type. @param max_bytes the largest size taken
/// @throws FileError naming the path and the system's reason
template <class = void>
[[nodiscard]] std::vector<std::byte> read_binary_file(FilePath const& path,
                                                      std::size_t max_bytes = std::numeric_limits<std::size_t>::max() /
                                                                              4) {
  return detail::read_whole<std::vector<std::byte>>(path, max_bytes);
}

/// @brief Writes a file whole or not at all: a reader sees the old file or the new one, even if writing fails or the
/// machine stops. An existing file keeps its permissions.
/// @param parts  contents, one after the other
/// @throws FileError naming the path and the system's reason; the old file is then unchanged, unless only the folder
///         could not be flushed
/// @note   Writes to `unfinished_path`, then `finish_file`.
template <class = void>
void write_file(FilePath const& path, std::span<std::span<std::byte const> const> parts) {
  // Replace what a link names, not the link; a dangling one is replaced itself.
  FilePath target = path;
  if (char* const resolved = ::realpath(path.c_str(), nullptr); resolved != nullptr) {
    struct ::stat info {};
    if (::lstat(path.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) target = resolved;
    std::free(resolved);
  }
  struct ::stat old {};
  bool const exists = ::stat(target.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) {
    throw FileError(
        {"cannot replace file", "a regular file", S_ISDIR(old.st_mode) ? "a folder" : "a special file", path.string()});
  }
  if (exists && ::access(target.c_str(), W_OK) != 0) {
    throw_file_error("cannot replace file", "a writable file", path, errno);
  }
  struct Unfinished {
    FilePath path;
    ~Unfinished() { ::unlink(path.c_str()); }  // has another name by now, unless something failed
  };
  for (int fd = -1; fd < 0;) {
    FilePath const name = unfinished_path(target);
    fd = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EEXIST) continue;
    if (fd < 0) throw_file_error("cannot create file", "a writable folder", target, errno);
    FileDescriptor const file(fd);
    Unfinished const unfinished{name};
    if (exists && ::fchmod(fd, old.st_mode & 07777) != 0) {
      throw_file_error("cannot write file", "a writable folder", name, errno);
    }
    for (auto part : parts) {
      while (!part.empty()) {
        ::ssize_t const put = ::write(fd, part.data(), part.size());
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) throw_file_error("cannot write file", "room for the file", name, errno);
        part = part.subspan(static_cast<std::size_t>(put));
      }
    }
    detail::finish_file(fd, name, target);
  }
}

/// @brief The same for contents in one piece.
template <class = void>
void write_file(FilePath const& path, std::string_view contents) {
  std::span<std::byte const> const part = std::as_bytes(std::span(contents));
  write_file(path, std::span(&part, 1));
}

HEADAWARE_NAMESPACE_END
