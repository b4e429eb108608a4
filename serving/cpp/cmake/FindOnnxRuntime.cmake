# Finds ONNX Runtime's C++ interface as the target OnnxRuntime::OnnxRuntime: where the system keeps it, in
# the folder of Microsoft's archive if CMAKE_PREFIX_PATH names it, or what ONNXRUNTIME_INCLUDE_DIR and
# ONNXRUNTIME_LIBRARY name, such as the shared library inside the Python package.
#
# Not by ONNX Runtime's own CMake package: that of Microsoft's archives names folders that they do not have
# (https://github.com/microsoft/onnxruntime/issues/26186).

if(TARGET OnnxRuntime::OnnxRuntime)
  set(OnnxRuntime_FOUND TRUE)
  return()
endif()

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h
  PATH_SUFFIXES onnxruntime onnxruntime/core/session)
find_library(ONNXRUNTIME_LIBRARY onnxruntime)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime
  REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE_DIR
  REASON_FAILURE_MESSAGE
    "unpack an archive of https://github.com/microsoft/onnxruntime/releases and name its folder in CMAKE_PREFIX_PATH, or give ONNXRUNTIME_INCLUDE_DIR and ONNXRUNTIME_LIBRARY")
if(NOT OnnxRuntime_FOUND)
  return()
endif()

set(_onnxruntime_library "${ONNXRUNTIME_LIBRARY}")
get_filename_component(_onnxruntime_folder "${ONNXRUNTIME_LIBRARY}" DIRECTORY)
get_filename_component(_onnxruntime_name "${ONNXRUNTIME_LIBRARY}" NAME)
# The Python package holds the library under its full version alone, which no loader looks for.
if(_onnxruntime_name MATCHES "^libonnxruntime\\.so\\.([0-9]+)\\..+$")
  set(_onnxruntime_soname "libonnxruntime.so.${CMAKE_MATCH_1}")
  if(NOT EXISTS "${_onnxruntime_folder}/${_onnxruntime_soname}")
    set(_onnxruntime_library "${CMAKE_CURRENT_BINARY_DIR}/onnxruntime/${_onnxruntime_soname}")
    file(REAL_PATH "${ONNXRUNTIME_LIBRARY}" _onnxruntime_target)
    file(REAL_PATH "${_onnxruntime_library}" _onnxruntime_linked)
    # A link that is right stays: whoever configures again may not take it from under a running program.
    if(NOT _onnxruntime_linked STREQUAL _onnxruntime_target)
      file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/onnxruntime")
      file(CREATE_LINK "${ONNXRUNTIME_LIBRARY}" "${_onnxruntime_library}" SYMBOLIC)
    endif()
    # What an installation takes along, so that it does not refer to this build.
    set(OnnxRuntime_LIBRARY_TO_INSTALL "${ONNXRUNTIME_LIBRARY}")
    set(OnnxRuntime_INSTALLED_NAME "${_onnxruntime_soname}")
  endif()
endif()

# Global, for a project that has this one as a folder and links it as a static library.
add_library(OnnxRuntime::OnnxRuntime SHARED IMPORTED GLOBAL)
set_target_properties(OnnxRuntime::OnnxRuntime PROPERTIES
  IMPORTED_LOCATION "${_onnxruntime_library}"
  INTERFACE_INCLUDE_DIRECTORIES "${ONNXRUNTIME_INCLUDE_DIR}")
