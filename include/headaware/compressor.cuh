#pragma once

/// @file
/// The front door with the CUDA back end.

#include <headaware/cache/compact.cuh>
#include <headaware/compressor.hpp>
#include <headaware/stats/observe.cuh>
