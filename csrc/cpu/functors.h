// What a loss's header becomes: its functors for one instruction set and both number types, as plain data. A built-in loss
// (loss.cpp) and a header that is compiled at run time take the same path:
//   #include "cpu/functors.h"
//   #include "my_loss.h"
//   DML_FUNCTORS(my_loss)
// The entries join the table of their instruction set (levels.cpp), whose drivers cannot tell them apart.
#pragma once
#include "cpu/entry.h"
#if !defined(DML_HEADERS) && __has_include("dml_build.h")              // at run time the compiler is told
#include "dml_build.h"
#endif
#ifndef DML_HEADERS
#define DML_HEADERS ""
#endif

#define DML_TEXT_(a) #a
#define DML_TEXT(a) DML_TEXT_(a)

DML_BEGIN

template <class List, class T> static const Table<T>& listed() {
  static Table<T>* table = nullptr;                                    // asked for under a lock
  if (!table) {
    static Table<T> space;  // only the pages of the functors there are become memory
    List::list(space);
    table = &space;
  }
  return *table;
}

template <class List> static const FunctorModule* functor_module() {
  const auto& f32 = listed<List, float>();
  const auto& f64 = listed<List, double>();
  static FunctorModule module;
  module = {DML_HEADERS, DML_TEXT(DML_LEVEL), f32.entries, f64.entries, f32.count, sizeof(Entry<float>), sizeof(Entry<double>)};
  return &module;
}

DML_END

#define DML_FUNCTORS(name)                                                                           \
  extern "C" __attribute__((visibility("default"))) const dml::FunctorModule* dml_functor_module() { \
    return dml::functor_module<dml::name##_functors>();                                              \
  }
