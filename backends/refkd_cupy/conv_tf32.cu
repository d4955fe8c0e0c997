// Convolutions on tensor cores whose factors are rounded to TF32.
// hot: conv2d_*
#include "conv.cuh"

template <bool COLUMNS, int A_STEP, int B_STEP>
using Narrow = TensorProduct<1, false, COLUMNS, A_STEP, B_STEP>;
template <bool COLUMNS, int A_STEP, int B_STEP>
using Wide = TensorProduct<1, true, COLUMNS, A_STEP, B_STEP>;

CONV_KERNELS(Narrow, 12, Wide, 2, 1, 8)
