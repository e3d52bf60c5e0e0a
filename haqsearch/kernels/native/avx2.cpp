// The table of avx2.
#include "avx2_conv.h"
#include "kernels.h"

namespace haq {

OpPointer avx2_linear(const ConvSpec&);

namespace {

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Kernels kAvx2 = {"avx2", available, avx2::make_conv, nullptr, nullptr, avx2_linear};

}  // namespace haq
