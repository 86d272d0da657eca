// error: queries, keys, values and output of attention are float, float16 or bfloat16

#include <headaware/attention/attend.hpp>

#include <cstdint>

namespace ha = headaware;

void attend(float const* queries, std::int8_t const* keys, ha::PaddedView const& view, float* output) {
  ha::StridedLayout const layout = ha::strided_bhsd(1, 1, 1, 64);
  ha::attend({1, 1, 1, 1, 64}, ha::AttentionQueries{queries, layout}, ha::KeptCache{keys, keys, view},
             ha::AttentionOutput{output, layout});
}
