import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load

required_conan_version = ">=2.1"


class HeadawareConan(ConanFile):
    name = "headaware"
    description = "Header-only C++20/CUDA library that makes an LLM's KV cache smaller, head by head"
    license = "MIT"
    topics = ("llm", "kv-cache", "cuda", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    exports = "include/headaware/version.hpp"
    exports_sources = "CMakeLists.txt", "cmake/*", "include/*", "LICENSE"
    test_package_folder = "tests/package/find_package"
    no_copy_source = True

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include", "headaware", "version.hpp"))
        self.version = ".".join(re.findall(r"^#define HEADAWARE_VERSION_\w+ (\d+)$", text, re.MULTILINE))

    def layout(self):
        cmake_layout(self)

    def validate(self):
        if self.settings.get_safe("compiler.cppstd"):
            check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.cache_variables["HEADAWARE_BUILD_TESTS"] = False
        toolchain.cache_variables["HEADAWARE_CUDA"] = "OFF"
        toolchain.cache_variables["FETCHCONTENT_FULLY_DISCONNECTED"] = True
        toolchain.generate()

    def build(self):
        pass

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        cmake = CMake(self)
        cmake.configure()
        cmake.install()

    def package_id(self):
        self.info.clear()

    def package_info(self):
        # The project's own package file: it finds OpenMP and CUDA on the machine that uses the library.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = [os.path.join("share", "cmake", "headaware")]
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
