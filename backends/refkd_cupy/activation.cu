// Pointwise activations: y = f(x), and dx = dy f' with f' from y (relu, sigmoid, tanh) or from x.
#include "common.cuh"
#include "pointwise.cuh"

#define SQRT_HALF 0.70710678118654752f
#define SQRT_2_OVER_PI 0.79788456080286536f
#define ONE_OVER_SQRT_2_PI 0.39894228040143268f
#define CUBIC 0.044715f

// The logistic sigmoid, of the exponential of what is not positive: nothing overflows.
__device__ __forceinline__ float sigmoid(float x) {
  float e = expf(-fabsf(x));
  return (x < 0 ? e : 1.0f) / (1 + e);
}

__device__ __forceinline__ float gelu_argument(float x) {
  return SQRT_2_OVER_PI * (x + CUBIC * x * x * x);
}

// y = max(x, 0), NaN passed on
// hot
extern "C" __global__ void relu_forward(const float* x, float* y, long long n) {
  map(x, y, n, [](float a) { return a <= 0 ? 0.0f : a; });
}

// dx = dy (1 where y > 0, else 0): a product, so that what is not finite in dy shows
// hot
extern "C" __global__ void relu_backward(const float* dy, const float* y, float* dx, long long n) {
  map(dy, y, dx, n, [](float d, float a) { return d * (a > 0 ? 1.0f : 0.0f); });
}

// y = σ(x)
extern "C" __global__ void sigmoid_forward(const float* x, float* y, long long n) {
  map(x, y, n, [](float a) { return sigmoid(a); });
}

// dx = dy y (1 − y)
extern "C" __global__ void sigmoid_backward(const float* dy, const float* y, float* dx,
                                            long long n) {
  map(dy, y, dx, n, [](float d, float a) { return d * (a * (1 - a)); });
}

// y = tanh(x)
extern "C" __global__ void tanh_forward(const float* x, float* y, long long n) {
  map(x, y, n, [](float a) { return tanhf(a); });
}

// dx = dy (1 − y)(1 + y)
extern "C" __global__ void tanh_backward(const float* dy, const float* y, float* dx, long long n) {
  map(dy, y, dx, n, [](float d, float a) { return d * ((1 - a) * (1 + a)); });
}

// y = x σ(x)
// hot
extern "C" __global__ void silu_forward(const float* x, float* y, long long n) {
  map(x, y, n, [](float a) { return a * sigmoid(a); });
}

// dx = dy σ(x)(1 + x σ(−x))
// hot
extern "C" __global__ void silu_backward(const float* dy, const float* x, float* dx, long long n) {
  map(dy, x, dx, n, [](float d, float a) { return d * (sigmoid(a) * (1 + a * sigmoid(-a))); });
}

// y = x Φ(x), Φ(x) = (1 + erf(x/√2))/2
// hot
extern "C" __global__ void gelu_forward(const float* x, float* y, long long n) {
  map(x, y, n, [](float a) { return 0.5f * a * (1 + erff(a * SQRT_HALF)); });
}

// dx = dy (Φ(x) + x φ(x)), φ(x) = exp(−x²/2)/√(2π)
// hot
extern "C" __global__ void gelu_backward(const float* dy, const float* x, float* dx, long long n) {
  map(dy, x, dx, n, [](float d, float a) {
    float density = expf(-0.5f * a * a) * ONE_OVER_SQRT_2_PI;
    return d * (0.5f * (1 + erff(a * SQRT_HALF)) + a * density);
  });
}

// y = x σ(2u), u = √(2/π)(x + 0.044715 x³)
extern "C" __global__ void gelu_tanh_forward(const float* x, float* y, long long n) {
  map(x, y, n, [](float a) { return a * sigmoid(2 * gelu_argument(a)); });
}

// dx = dy σ(2u)(1 + 2x σ(−2u) u')
extern "C" __global__ void gelu_tanh_backward(const float* dy, const float* x, float* dx,
                                              long long n) {
  map(dy, x, dx, n, [](float d, float a) {
    float u = gelu_argument(a), slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * a * a);
    return d * (sigmoid(2 * u) * (1 + 2 * a * sigmoid(-2 * u) * slope));
  });
}
