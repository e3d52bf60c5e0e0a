// The table of avx512.
#include "kernels.h"

namespace haq {

OpPointer avx512_conv(const ConvSpec&);
OpPointer avx512_binary(const ConvSpec&);
OpPointer avx512_depthwise(const ConvSpec&);
OpPointer avx512_linear(const ConvSpec&);
OpPointer avx512_weighted_sum(const SumSpec&);
OpPointer avx512_average(const PoolSpec&);
OpPointer avx512_maximum(const PoolSpec&);

namespace {

bool available() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bitalg");
}

}  // namespace

const Kernels kAvx512 = {
    "avx512",
    available,
    avx512_conv,
    avx512_depthwise,
    avx512_binary,
    avx512_linear,
    avx512_weighted_sum,
    avx512_average,
    avx512_maximum,
};

}  // namespace haq
