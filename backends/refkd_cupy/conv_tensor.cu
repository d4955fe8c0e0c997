// Convolutions on tensor cores, with the accuracy of float32.
#include "conv.cuh"

template <bool COLUMNS, int A_STEP, int B_STEP>
using Narrow = TensorProduct<3, false, COLUMNS, A_STEP, B_STEP>;
template <bool COLUMNS, int A_STEP, int B_STEP>
using Wide = TensorProduct<3, true, COLUMNS, A_STEP, B_STEP>;

CONV_KERNELS(Narrow, 12, Wide, 2, 1, 8)
