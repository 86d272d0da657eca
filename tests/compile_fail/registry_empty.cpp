// error: a registry holds 1 to 255 types

#include <headaware/policy/registry.hpp>

auto const size = headaware::PolicyRegistry<>::size;
