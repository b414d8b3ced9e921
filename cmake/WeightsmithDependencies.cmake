# Every third-party library, found once. Debian's packages are found by themselves; another LibTorch (2.x, CUDA) is
# chosen with -DCMAKE_PREFIX_PATH=<libtorch>, and header-only libraries that a machine lacks with
# -DCMAKE_INCLUDE_PATH=<folder that holds CLI/, nlohmann/, spdlog/, valijson/, catch2/>.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

if(WEIGHTSMITH_CCACHE)
  find_program(WEIGHTSMITH_CCACHE_PROGRAM ccache)
  if(WEIGHTSMITH_CCACHE_PROGRAM)
    # pch_defines and time_macros: ccache refuses objects built from a precompiled header without them. The base
    # folder makes paths relative, so that a second checkout finds what the first one compiled.
    set(CMAKE_CXX_COMPILER_LAUNCHER
        ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
        CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${WEIGHTSMITH_CCACHE_PROGRAM})
  endif()
endif()

# A header-only library: its CMake package where there is one, else its header alone.
function(weightsmith_find_header_library package target header)
  find_package(${package} QUIET)
  if(TARGET ${target})
    return()
  endif()
  find_path(${package}_HEADER_DIR ${header})
  if(NOT ${package}_HEADER_DIR)
    message(FATAL_ERROR "${package} was not found: install it (scripts/setup.sh) or name the folder that holds "
                        "${header} with -DCMAKE_INCLUDE_PATH=DIR")
  endif()
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE ${${package}_HEADER_DIR})
endfunction()

find_package(Torch REQUIRED)
find_package(Threads REQUIRED)
# at::parallel_for is a template: without it the loops of this project run on one thread.
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(ZLIB REQUIRED)
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_path(MINIZIP_INCLUDE_DIR minizip/unzip.h REQUIRED)
find_library(MINIZIP_LIBRARY minizip REQUIRED)
weightsmith_find_header_library(CLI11 CLI11::CLI11 CLI/CLI.hpp)
weightsmith_find_header_library(nlohmann_json nlohmann_json::nlohmann_json nlohmann/json.hpp)
weightsmith_find_header_library(spdlog spdlog::spdlog spdlog/spdlog.h)
weightsmith_find_header_library(valijson ValiJSON::valijson valijson/validator.hpp)
if(WEIGHTSMITH_BUILD_TESTS)
  weightsmith_find_header_library(Catch2 Catch2::Catch2 catch2/catch.hpp)
endif()
