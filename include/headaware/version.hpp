#pragma once

/// @file
/// The one place that names the version: CMake, Conan and vcpkg read these lines.

#define HEADAWARE_VERSION_MAJOR 0
#define HEADAWARE_VERSION_MINOR 1
#define HEADAWARE_VERSION_PATCH 0
