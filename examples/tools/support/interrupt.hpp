#pragma once

// Ctrl-C asks a long job to stop at the next good moment; a second one stops it at once.

#include <atomic>
#include <csignal>

namespace support {

/// Thrown to leave a job that Ctrl-C interrupts.
struct Interrupted {};

class Interrupt {
 public:
  /// A stop that was asked for before, after the last check of another part of the job, counts for this one too.
  Interrupt() {
    (void)flag();  // made before a handler may look for it
    std::signal(SIGINT, &Interrupt::ask);
    std::signal(SIGTERM, &Interrupt::ask);
  }
  Interrupt(Interrupt const&) = delete;
  Interrupt& operator=(Interrupt const&) = delete;
  ~Interrupt() {
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
  }
  /// @throws Interrupted if it was asked to stop, once
  void check() const {
    if (flag().exchange(false)) throw Interrupted{};
  }

 private:
  static void ask(int signal) {
    flag().store(true);
    std::signal(signal, SIG_DFL);
  }
  static std::atomic<bool>& flag() {
    static std::atomic<bool> asked{false};
    return asked;
  }
  static_assert(std::atomic<bool>::is_always_lock_free);
};

}  // namespace support
