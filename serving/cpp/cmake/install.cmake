# What `cmake --install` writes: the library, its headers, and a package for find_package(flowturbo_trt).

set(package_folder "${CMAKE_INSTALL_LIBDIR}/cmake/flowturbo_trt")

install(TARGETS flowturbo EXPORT flowturbo_trtTargets)
install(DIRECTORY include/flowturbo DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT flowturbo_trtTargets NAMESPACE flowturbo:: DESTINATION "${package_folder}")
if(OnnxRuntime_LIBRARY_TO_INSTALL)
  install(PROGRAMS "${OnnxRuntime_LIBRARY_TO_INSTALL}" DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    RENAME "${OnnxRuntime_INSTALLED_NAME}")
endif()

configure_package_config_file(cmake/flowturbo_trtConfig.cmake.in flowturbo_trtConfig.cmake
  INSTALL_DESTINATION "${package_folder}")
# Before 1.0 every minor version may change the interface.
write_basic_package_version_file(flowturbo_trtConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/flowturbo_trtConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/flowturbo_trtConfigVersion.cmake"
  cmake/FindOnnxRuntime.cmake
  DESTINATION "${package_folder}")
