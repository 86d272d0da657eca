#pragma once

// A line on the terminal that shows how far a long job has come.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

namespace support {

/// "1:02:03", "2:03" or "3 s".
inline std::string duration(double seconds) {
  auto const total = std::llround(seconds);
  char text[64];
  if (total < 60) {
    std::snprintf(text, sizeof(text), "%d s", static_cast<int>(total));
  } else if (total < 3600) {
    std::snprintf(text, sizeof(text), "%d:%02d min", static_cast<int>(total / 60), static_cast<int>(total % 60));
  } else {
    std::snprintf(text, sizeof(text), "%d:%02d:%02d h", static_cast<int>(total / 3600),
                  static_cast<int>(total / 60 % 60), static_cast<int>(total % 60));
  }
  return text;
}

/// Progress of a job of a known size, on stderr: a bar that is drawn over where that is a terminal, else a line
/// every ten seconds.
class Progress {
 public:
  /// @param unit  what is counted, for example "tokens"; @param done  what an earlier run has done
  Progress(std::string what, std::string unit, std::int64_t total, std::int64_t done = 0)
      : what_(std::move(what)), unit_(std::move(unit)), total_(std::max<std::int64_t>(total, 1)), first_(done) {}

  /// @param done  of `total`; fractions of a unit are fine
  void show(double done) {
    double const now = seconds();
    bool const due = now - shown_ >= (terminal_ ? 0.1 : 10.0);
    if (!due) return;
    shown_ = now;
    print(done);
  }
  /// The last state, and the end of the line.
  void finish(double done) {
    print(done);
    if (terminal_) std::fputc('\n', stderr);
  }

  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  void print(double done) const {
    constexpr int width = 24;
    double const share = std::clamp(done / static_cast<double>(total_), 0.0, 1.0);
    auto const full = static_cast<int>(share * width);
    std::string const bar =
        std::string(static_cast<std::size_t>(full), '#') + std::string(static_cast<std::size_t>(width - full), '-');
    double const elapsed = seconds();
    double const rate = elapsed > 0 ? (done - static_cast<double>(first_)) / elapsed : 0;
    std::string const left =
        rate > 0 ? duration((static_cast<double>(total_) - done) / rate) + " left" : std::string("time left unknown");
    std::fprintf(stderr, "%s%s [%s] %3.0f %%, %.0f of %lld %s, %.0f/s, %s%s", terminal_ ? "\r" : "", what_.c_str(),
                 bar.c_str(), 100 * share, done, static_cast<long long>(total_), unit_.c_str(), rate, left.c_str(),
                 terminal_ ? "\033[K" : "\n");
    std::fflush(stderr);
  }

  std::string what_;
  std::string unit_;
  std::int64_t total_;
  std::int64_t first_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double shown_ = -1e9;
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
};

}  // namespace support
