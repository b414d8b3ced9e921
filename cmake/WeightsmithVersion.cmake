# The version that --version and run.json show: git describe where there is a checkout, else the project's number.
set(WEIGHTSMITH_GIT_REVISION "unknown")
find_package(Git QUIET)
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} describe --always --dirty --abbrev=12
                  WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} OUTPUT_VARIABLE WEIGHTSMITH_GIT_OUTPUT
                  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE WEIGHTSMITH_GIT_STATUS)
  if(WEIGHTSMITH_GIT_STATUS EQUAL 0)
    set(WEIGHTSMITH_GIT_REVISION ${WEIGHTSMITH_GIT_OUTPUT})
  endif()
endif()
# Configure again when HEAD moves, so that the revision stays true.
if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/.git/logs/HEAD)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/.git/logs/HEAD)
endif()
