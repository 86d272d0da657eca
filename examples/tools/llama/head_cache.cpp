#include "tools/llama/head_cache.hpp"

#include <headaware/element.hpp>

namespace llama_adapter {

template class HeadCache<float>;
template class HeadCache<headaware::float16>;

}  // namespace llama_adapter
