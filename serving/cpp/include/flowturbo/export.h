#ifndef FLOWTURBO_EXPORT_H
#define FLOWTURBO_EXPORT_H

/* What the library shows of itself; everything else in it stays hidden. */
#if defined(FLOWTURBO_STATIC)
#define FLOWTURBO_API
#elif defined(_WIN32) && defined(FLOWTURBO_BUILDS_LIBRARY)
#define FLOWTURBO_API __declspec(dllexport)
#elif defined(_WIN32)
#define FLOWTURBO_API __declspec(dllimport)
#else
#define FLOWTURBO_API __attribute__((visibility("default")))
#endif

#endif
