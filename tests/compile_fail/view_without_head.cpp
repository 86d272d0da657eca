// error: a view of a cache needs 'head(int64_t sequence, int64_t kv_head) const'

#include <headaware/attention/kept_view.hpp>

struct View {};

static_assert(headaware::check_kept_view<View>());
