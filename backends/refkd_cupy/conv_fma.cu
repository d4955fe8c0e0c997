// Convolutions in float32 by fused multiply-adds.
// hot: conv2d_gather_128x128_v4 conv2d_gather_128x64_v4 conv2d_weight_128x128_v44
#include "conv.cuh"

CONV_KERNELS(FmaProduct, 16, FmaProduct, 4, 2, 16)
