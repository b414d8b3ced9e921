# Helpers that give every target the same flags.

function(weightsmith_flags target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual)
  # The same bits whatever the processor and its flags: products and sums are fused where the code says so, nowhere else.
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++ 12 to 14 warn of string concatenation inlined from libstdc++ (GCC bugs 105329, 105651).
    target_compile_options(${target} PRIVATE -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds)
  endif()
  if(WEIGHTSMITH_UNITY AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # In a batch g++ takes every source but the batch itself for a header.
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
  endif()
  if(WEIGHTSMITH_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(WEIGHTSMITH_CLANG_TIDY)
    set_target_properties(${target} PROPERTIES CXX_CLANG_TIDY clang-tidy)
  endif()
endfunction()

# weightsmith_precompile(TARGET): uses the library's precompiled header, and compiles the target's sources in batches:
# reading that header takes longer than compiling most of them. A batch is at most six sources of one folder, so that a
# changed file still rebuilds in seconds and a new one moves no other folder's batches.
function(weightsmith_precompile target)
  if(WEIGHTSMITH_PCH AND NOT target STREQUAL weightsmith)
    target_precompile_headers(${target} REUSE_FROM weightsmith)
  endif()
  if(NOT WEIGHTSMITH_UNITY)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  get_target_property(sources ${target} SOURCES)
  foreach(source IN LISTS sources)
    cmake_path(GET source PARENT_PATH folder)
    cmake_path(GET folder FILENAME folder)
    if(NOT DEFINED count_${folder})
      set(count_${folder} 0)
    endif()
    math(EXPR batch "${count_${folder}} / 6")
    math(EXPR count_${folder} "${count_${folder}} + 1")
    set_source_files_properties(${source} TARGET_DIRECTORY ${target} PROPERTIES UNITY_GROUP "${folder}_${batch}")
  endforeach()
endfunction()

# weightsmith_add_tool(NAME SOURCES...): one executable, installed to bin.
function(weightsmith_add_tool name)
  add_executable(${name} ${ARGN})
  weightsmith_flags(${name})
  target_link_libraries(${name} PRIVATE weightsmith_tool)
  weightsmith_precompile(${name})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# weightsmith_add_tests(NAME LABEL SOURCES...): one Catch2 executable and one CTest entry (loading LibTorch takes most
# of a second, so an entry a case would cost more than the cases).
function(weightsmith_add_tests name label)
  add_executable(${name} ${ARGN})
  weightsmith_flags(${name})
  target_link_libraries(${name} PRIVATE weightsmith_test_support)
  weightsmith_precompile(${name})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 600)
endfunction()
