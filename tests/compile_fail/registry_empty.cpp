// error: a registry holds 1 to 255 policies

#include <headaware/policy/registry.hpp>

auto const size = headaware::PolicyRegistry<>::size;
