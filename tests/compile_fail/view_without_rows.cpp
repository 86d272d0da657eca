// error: a view's head needs 'int64_t rows() const' and 'int64_t offset(int64_t row, int64_t channels) const'

#include <headaware/attention/kept_view.hpp>

#include <cstdint>

struct Rows {
  [[nodiscard]] std::int64_t offset(std::int64_t row, std::int64_t channels) const { return row * channels; }
};
struct View {
  [[nodiscard]] Rows head(std::int64_t, std::int64_t) const { return {}; }
};

static_assert(headaware::check_kept_view<View>());
