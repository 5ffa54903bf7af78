// What a host that compiled a functor at run time must know of it, beside its kernels (row_kernels.h):
//   #include "cuda/functors.h"
//   #include "my_loss.h"
// and the kernels of `Functor<float, false>` and `Functor<float, true>` are asked for by name, or those of a set of functors.
#pragma once
#include "cuda/row_kernels.h"
#include "cuda/set_kernels.h"

DML_BEGIN

// Values, bytes of options, numbers given, fields of limits, of sums and of slopes, floats per positive; 1 or 0 for slots, partners
// and centres, as CudaExternal; and for a table and for the CPU only, which have no kernels here.
template <class F> struct RowsLayout {
  using P = RowParts<F>;
  static constexpr int numbers[] = {F::kValues,
                                    int(sizeof(F)),
                                    GivenCount<F>::value,
                                    field_count<typename P::Limits, float>(),
                                    P::sums,
                                    field_count<typename P::Slopes, float>(),
                                    row_memory<F>(),
                                    F::kSlots,
                                    HasPartners<F>::value,
                                    HasCentres<F>::value,
                                    HasTable<F>::value,
                                    IsCpuOnly<F>::value};
};

template <int... numbers> __global__ void rows_told() {}               // its name says the numbers to who asks for it

template <class F> __global__ void rows_fits(F f, int* to) { *to = f.fits(); }   // by one thread

DML_END
