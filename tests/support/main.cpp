// The main function of the test programs, for both major versions of Catch2. Ends a run with one line such as
// "device: 12 passed, 0 failed, 3 skipped (no CUDA device)".

#define CATCH_CONFIG_RUNNER
#include "support/catch.hpp"

#include <cstdio>
#include <filesystem>
#include <map>
#include <string>

namespace {

struct Counts {
  int passed = 0;
  int failed = 0;
  std::map<std::string, int> skipped;  ///< by reason
  std::string skip_reason;             ///< of the running case
};

Counts& counts() {
  static Counts instance;
  return instance;
}

#if CATCH_VERSION_MAJOR >= 3
using ListenerBase = Catch::EventListenerBase;
#else
using ListenerBase = Catch::TestEventListenerBase;
#endif

class CountingListener : public ListenerBase {
 public:
  using ListenerBase::ListenerBase;

  void testCaseStarting(Catch::TestCaseInfo const&) override { counts().skip_reason.clear(); }

  void testCaseEnded(Catch::TestCaseStats const& stats) override {
    if (stats.totals.testCases.failed > 0) {
      ++counts().failed;
    } else if (!counts().skip_reason.empty()) {
      ++counts().skipped[counts().skip_reason];
    } else {
      ++counts().passed;
    }
  }
};
CATCH_REGISTER_LISTENER(CountingListener)

}  // namespace

namespace headaware_test {

void note_skip(std::string const& reason) { counts().skip_reason = reason; }

}  // namespace headaware_test

int main(int argc, char** argv) {
  Catch::Session session;
#if CATCH_VERSION_MAJOR >= 3
  session.configData().allowZeroTests = true;  // version 2 allows them anyway
#endif
  int const result = session.run(argc, argv);
  int skipped = 0;
  std::string reasons;
  for (auto const& [reason, cases] : counts().skipped) {
    skipped += cases;
    reasons += (reasons.empty() ? " (" : "; ") + reason;
  }
  if (!reasons.empty()) reasons += ")";
  if (counts().passed + counts().failed + skipped > 0) {
    std::string const program = std::filesystem::path(argv[0]).stem().string();
    std::printf("%s: %d passed, %d failed, %d skipped%s\n", program.substr(0, program.find('_')).c_str(),
                counts().passed, counts().failed, skipped, reasons.c_str());
  }
  // Version 3 calls a run without any case left an error.
  return counts().failed == 0 && counts().passed == 0 && skipped > 0 ? 0 : result;
}
