// How the windows of a convolution are cut for tiles, and copied beside each other.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <vector>

#include "amx_tile.h"
#include "op.h"

namespace haq::amx {

// How each kernel row of a window is cut into pieces of at most 64 bytes, all of them equal. (Cutting the window as one
// leaves fewer bytes unused, but has to copy all of it for each output: that never was faster.)
struct Cut {
  int stretch;       // bytes of a kernel row
  int count, bytes;  // pieces of it, and bytes of a piece: a multiple of 4

  explicit Cut(const ConvSpec& s) : stretch(s.kernel_w * s.in_channels) {
    count = (stretch + kBytes - 1) / kBytes;
    bytes = ((stretch + count - 1) / count + 3) / 4 * 4;
  }

  // The last piece begins early rather than end late: its first weights are zero then.
  int begin(int piece) const { return count == 1 ? 0 : std::min(piece * bytes, stretch - bytes); }
  int piece(int byte) const { return std::min(byte / bytes, count - 1); }
};

// The part of windows' pieces that cross a cache line, from the first one's address on.
inline double crossing(const Cut& cut, std::uintptr_t first, std::ptrdiff_t pitch) {
  int found = 0;
  for (int i = 0; i < cut.count; ++i)
    for (int row = 0; row < kRows; ++row)
      found += static_cast<int>((first + row * pitch + cut.begin(i)) % kBytes) + cut.bytes > kBytes;
  return double(found) / (cut.count * kRows);
}

// Memory for copies, and how windows get there: 16, 32 or 64 bytes at a time, some of them beyond the end. What is written
// there is overwritten by the next one or met by weights of zero; what is read is slack at worst.
class Copy {
 public:
  Copy(const ConvSpec& s, const Cut& cut, const View& in, int64_t bytes) : cut_(cut), data_(memory(bytes + kBytes)) {
    dense_ = s.dilation_w == 1 && in.pixel == s.in_channels;
    taps_ = s.kernel_w, channels_ = s.in_channels, window_ = s.stride_w * in.pixel, tap_ = s.dilation_w * in.pixel;
  }

  uint8_t* data() { return data_; }
  int size() const { return cut_.count * kBytes; }
  // Of a piece in the copy. They are copied one by one where they need no gathering, and then cross no line.
  std::ptrdiff_t place(int piece) const { return dense_ ? piece * kBytes : cut_.begin(piece); }

  // A kernel row of so many windows beside each other.
  void windows(const uint8_t* from, uint8_t* to, int count) const {
    const int bytes = dense_ ? cut_.bytes : channels_;
    if (bytes <= 16) each<16>(from, to, count);
    else if (bytes <= 32) each<32>(from, to, count);
    else each<64>(from, to, count);
  }

 private:
  // A thread's own, kept: the next layer wants as much.
  static uint8_t* memory(int64_t bytes) {
    static thread_local std::vector<uint8_t> kept;
    if (static_cast<int64_t>(kept.size()) < bytes + kBytes) kept = std::vector<uint8_t>(bytes + kBytes);
    return kept.data() + (-reinterpret_cast<std::uintptr_t>(kept.data()) & (kBytes - 1));
  }

  template <int Width>
  static void some(const uint8_t* from, uint8_t* to) {
    if constexpr (Width == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    } else if constexpr (Width == 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    } else {
      _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    }
  }

  template <int Width>
  void each(const uint8_t* from, uint8_t* to, int count) const {
    const std::ptrdiff_t size = cut_.count * kBytes, window = window_, tap = tap_;
    if (dense_) {
      for (int piece = 0; piece < cut_.count; ++piece) {
        const uint8_t* x = from + cut_.begin(piece);
        for (int i = 0; i < count; ++i) some<Width>(x + i * window, to + i * size + piece * kBytes);
      }
      return;
    }
    for (int i = 0; i < count; ++i, from += window) {
      uint8_t* place = to + i * size;
      for (int kx = 0; kx < taps_; ++kx, place += channels_)
        for (int c = 0; c < channels_; c += Width) some<Width>(from + kx * tap + c, place + c);
    }
  }

  Cut cut_;
  uint8_t* data_;
  int taps_, channels_;
  std::ptrdiff_t tap_, window_;
  bool dense_;
};

}  // namespace haq::amx
