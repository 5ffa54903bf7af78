// A shared object of functors compiled at run time, for one instruction set:
//   #include "cpu/functors.h"
//   #include "my_loss.h"
//   DML_FUNCTORS(my_loss)
// Its entries join the table of the extension, whose drivers cannot tell them from their own. Only plain data crosses over.
#pragma once
#include "cpu/entry.h"

DML_BEGIN

template <class List, class T> static const Table<T>& listed() {
  static Table<T>* made = nullptr;                                     // asked for once, under a lock
  if (!made) {
    static Table<T> space;
    List::list(space);
    made = &space;
  }
  return *made;
}

DML_END

#define DML_TEXT_(a) #a
#define DML_TEXT(a) DML_TEXT_(a)
#define DML_FUNCTORS(name)                                                                                             \
  extern "C" __attribute__((visibility("default"))) const dml::FunctorModule* dml_functor_module() {                   \
    const auto& f32 = dml::listed<dml::name##_functors, float>();                                                      \
    const auto& f64 = dml::listed<dml::name##_functors, double>();                                                     \
    static dml::FunctorModule module = {DML_HEADERS, DML_TEXT(DML_LEVEL), f32.entries, f64.entries, f32.count,         \
                                        sizeof(dml::Entry<float>), sizeof(dml::Entry<double>)};                        \
    return &module;                                                                                                    \
  }
