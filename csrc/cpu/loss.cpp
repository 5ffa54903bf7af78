// One loss for one instruction set: the build compiles this file once per header of csrc/losses and level, with -DDML_LOSS=ms
// and -DDML_LEVEL=avx2, so that an edited header costs its own units only.
#define DML_HEADER_(a) #a
#define DML_HEADER(a) DML_HEADER_(a)
#define DML_JOIN_(a, b) a##b
#define DML_JOIN(a, b) DML_JOIN_(a, b)

#include "cpu/functors.h"
// clang-format off: spaces would become part of the path
#include DML_HEADER(losses/DML_LOSS.h)
// clang-format on

DML_BEGIN

const FunctorModule* DML_JOIN(DML_LOSS, _module)() { return functor_module<DML_JOIN(DML_LOSS, _functors)>(); }

DML_END
