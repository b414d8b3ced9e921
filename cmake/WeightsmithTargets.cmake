# Helpers that give every target the same flags.

function(weightsmith_flags target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    # g++ 12 and 13 warn of string concatenation inlined from libstdc++ (GCC bugs 105329, 105651).
    target_compile_options(${target} PRIVATE -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds)
  endif()
  if(WEIGHTSMITH_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(WEIGHTSMITH_CLANG_TIDY)
    set_target_properties(${target} PROPERTIES CXX_CLANG_TIDY clang-tidy)
  endif()
endfunction()

# weightsmith_add_tool(NAME SOURCES...): one executable, installed to bin.
function(weightsmith_add_tool name)
  add_executable(${name} ${ARGN})
  weightsmith_flags(${name})
  target_link_libraries(${name} PRIVATE weightsmith_tool)
  if(WEIGHTSMITH_PCH)
    target_precompile_headers(${name} REUSE_FROM weightsmith_tool)
  endif()
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# weightsmith_add_tests(NAME LABEL SOURCES...): one Catch2 executable and one CTest entry (loading LibTorch takes most
# of a second, so an entry a case would cost more than the cases).
function(weightsmith_add_tests name label)
  add_executable(${name} ${ARGN})
  weightsmith_flags(${name})
  target_link_libraries(${name} PRIVATE weightsmith_test_support)
  if(WEIGHTSMITH_PCH)
    target_precompile_headers(${name} REUSE_FROM weightsmith_test_support)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 600)
endfunction()
