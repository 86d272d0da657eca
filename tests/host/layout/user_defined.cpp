#include "host/layout/definition.hpp"
#include "support/catch.hpp"

#include <headaware/config.hpp>
#include <headaware/layout/concept.hpp>
#include <headaware/layout/engines.hpp>

#include <cstdint>
#include <type_traits>

namespace ha = headaware;

namespace {

// [snippet: user-defined layout]
/// Blocks of 4 tokens, heads outermost, newest token first.
struct OwnLayout {
  std::int64_t tokens;
  HEADAWARE_HOST_DEVICE std::int64_t offset(std::int64_t, std::int64_t head, std::int64_t token,
                                            std::int64_t channel) const {
    return (head * tokens + (tokens - 1 - token)) * 8 + channel;
  }
};
static_assert(ha::KvLayout<OwnLayout>);
// [end snippet]
static_assert(ha::check_layout<OwnLayout>());

struct WithoutOffset {};
struct NarrowOffset {
  int offset(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const { return 0; }
};
struct MutableOffset {
  std::int64_t offset(std::int64_t, std::int64_t, std::int64_t, std::int64_t) { return 0; }
};
struct WithDestructor {
  ~WithDestructor() {}
  std::int64_t offset(std::int64_t, std::int64_t, std::int64_t, std::int64_t) const { return 0; }
};
static_assert(!ha::KvLayout<WithoutOffset>);
static_assert(!ha::KvLayout<NarrowOffset>);
static_assert(!ha::KvLayout<MutableOffset>);
static_assert(!ha::KvLayout<WithDestructor>);

// Kernels take these by value; all layers of a model share one, so a few words matter little, many do.
template <class... Layout>
inline constexpr bool small = ((std::is_trivially_copyable_v<Layout> && sizeof(Layout) <= 160) && ...);
static_assert(small<ha::StridedLayout, ha::RaggedLayout, ha::PagedLayout, ha::PagedSplitXLayout>);
static_assert(std::is_default_constructible_v<ha::PagedLayout> && std::is_default_constructible_v<ha::RaggedLayout>);

}  // namespace

TEST_CASE("a layout with nothing but an offset moves element by element", "[layout]") {
  OwnLayout const layout{5};
  CHECK(layout.offset(0, 1, 4, 2) == 42);
  CHECK(ha::detail::channel_run(layout) == 1);
  CHECK_FALSE(ha::detail::rows_contiguous(layout, 8));
  CHECK_FALSE(ha::detail::tokens_adjacent(layout));
  CHECK(layout_test::longest_run(layout, {5}, 2, 8) == 8);  // what it could offer
}

TEST_CASE("one layout serves keys and values, a pair serves each", "[layout]") {
  auto const single = ha::hugging_face(1, 2, 3, 4);
  CHECK(ha::detail::keys_of(single).required_span_size() == ha::detail::values_of(single).required_span_size());
  ha::KvLayouts<OwnLayout, ha::StridedLayout> const pair{OwnLayout{5}, single};
  CHECK(ha::detail::keys_of(pair).offset(0, 0, 0, 0) == 32);
  CHECK(ha::detail::values_of(pair).offset(0, 0, 0, 0) == 0);
}
