// The table of amx: tiles where they are faster, AVX-512 for the rest.
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace haq {

OpPointer amx_conv(const ConvSpec&);
OpPointer avx512_linear(const ConvSpec&);

namespace {

// Linux gives a process the memory that tiles need when it asks for it.
bool permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool supported() {
  unsigned a, b, c, d;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTile) && (d & kInt8) && kAvx512.available() && permitted();
}

bool available() {
  static const bool found = supported();
  return found;
}

}  // namespace

// No bit planes: they reach between a seventh of the tiles' speed and all of it, with one bit on both sides too. Few rows
// are bound by reading weights, and stay with those that are packed in fewer bits.
const Kernels kAmx = {"amx", available, amx_conv, nullptr, nullptr, avx512_linear};

}  // namespace haq
