// What a machine can do at most, to hold the kernels against.
#pragma once

#include <cstdint>
#include <vector>

namespace haq {

// run(iterations) does multiply-adds in registers alone, and gives how many.
struct Peak {
  const char* name;
  int64_t (*run)(int64_t iterations);
};

#if defined(HAQ_X86)
std::vector<Peak> avx2_peaks();
std::vector<Peak> avx512_peaks();
#endif
#if defined(HAQ_AMX)
std::vector<Peak> amx_peaks();
#endif

}  // namespace haq
