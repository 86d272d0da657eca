// error: a view of a cache must be trivially copyable, because kernels take it by value

#include <headaware/attention/kept_view.hpp>

#include <cstdint>
#include <vector>

struct Rows {
  std::int64_t held = 0;
  [[nodiscard]] std::int64_t rows() const { return held; }
  [[nodiscard]] std::int64_t offset(std::int64_t row, std::int64_t channels) const { return row * channels; }
};
struct View {
  std::vector<std::int64_t> lengths;
  [[nodiscard]] Rows head(std::int64_t sequence, std::int64_t) const {
    return {lengths[static_cast<std::size_t>(sequence)]};
  }
};

static_assert(headaware::check_kept_view<View>());
