// The table of avx2.
#include "avx2_conv.h"
#include "kernels.h"

namespace haq {

OpPointer avx2_binary(const ConvSpec&);
OpPointer avx2_depthwise(const ConvSpec&);
OpPointer avx2_linear(const ConvSpec&);
OpPointer avx2_weighted_sum(const SumSpec&);
OpPointer avx2_average(const PoolSpec&);
OpPointer avx2_maximum(const PoolSpec&);

namespace {

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Kernels kAvx2 = {
    "avx2",
    available,
    avx2::make_conv,
    avx2_depthwise,
    avx2_binary,
    avx2_linear,
    avx2_weighted_sum,
    avx2_average,
    avx2_maximum,
};

}  // namespace haq
