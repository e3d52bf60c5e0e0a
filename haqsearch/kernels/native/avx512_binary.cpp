// Convolutions of 1 or 2 bits on both sides: bit planes, AND, vpopcntd.
//
// With weights base + step * code: sum x * w = base * sum x + step * sum over pairs of planes of 2^(i + j) * count(x_j & w_i).
// A lane is an output channel, and a word 32 input channels of one pixel.
#include "avx512_epilogue.h"
#include "kernels.h"
#include "packed_bits.h"
#include "packed_patch.h"

namespace haq {
namespace {

using avx512::kBlock;

constexpr int kWord = 32, kPixels = 8, kTogether = 2;  // blocks of outputs to a panel

int bits_of(int largest) {
  int bits = 1;
  while (largest >> bits) ++bits;
  return bits;
}

class BitPlanes final : public Op {
 public:
  BitPlanes(const ConvSpec& spec, const Levels& levels)
      : s_(spec), levels_(levels), requantizer_(spec.folded(), spec.bound()), input_planes_(bits_of(spec.input_high)),
        words_((spec.in_channels + kWord - 1) / kWord), blocks_((spec.out_channels + kBlock - 1) / kBlock) {
    const int taps = s_.kernel_h * s_.kernel_w;
    plane_ = size_t(taps) * words_ * kTogether * kBlock;
    weight_.resize((blocks_ + 1) / kTogether * levels_.bits * plane_);
    for (int n = 0; n < s_.out_channels; ++n)
      for (int c = 0; c < s_.in_channels; ++c)
        for (int tap = 0; tap < taps; ++tap) {
          const int code = levels_.code(s_.weight[(size_t(n) * s_.in_channels + c) * taps + tap]);
          for (int i = 0; i < levels_.bits; ++i)
            *word(n, i, tap * words_ + c / kWord) |= static_cast<uint32_t>(code >> i & 1) << (c % kWord);
        }
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    if (first >= end) return;
    const auto pack = [this](const uint8_t* codes, uint32_t* to, std::ptrdiff_t plane) { pack_pixel(codes, to, plane); };
    const PackedPatch<uint32_t> patch(s_, *in, out, first, end, words_, input_planes_, 2, pack);
    const Stretches stretches(s_, patch.row, words_);
    const std::vector<int32_t> sums = window_sums(patch);
    for (int block = 0; block < blocks_; block += kTogether) {
      size_t i = 0;
      if (blocks_ - block > 1) {
        for (; i + kPixels <= patch.to.size(); i += kPixels) tile<kPixels, 2>(patch, stretches, &sums[i], i, block);
        for (; i < patch.to.size(); ++i) tile<1, 2>(patch, stretches, &sums[i], i, block);
      } else {
        for (; i + kPixels <= patch.to.size(); i += kPixels) tile<kPixels, 1>(patch, stretches, &sums[i], i, block);
        for (; i < patch.to.size(); ++i) tile<1, 1>(patch, stretches, &sums[i], i, block);
      }
    }
  }

  const char* method() const override { return "avx512 bit planes"; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(weight_.size() * sizeof(uint32_t)); }

 private:
  // Of output n, plane i: 32 input channels of one tap.
  uint32_t* word(int n, int i, int index) {
    const int panel = n / (kTogether * kBlock), lane = n % (kTogether * kBlock);
    return &weight_[(panel * levels_.bits + i) * plane_ + size_t(index) * kTogether * kBlock + lane];
  }

  // 64 channels at a time; with an odd number of words, one is written beyond the pixel.
  void pack_pixel(const uint8_t* codes, uint32_t* to, std::ptrdiff_t plane) const {
    for (int c = 0; c < s_.in_channels; c += 64, to += 2) {
      const int left = s_.in_channels - c;
      const __m512i some = _mm512_maskz_loadu_epi8(left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1, codes + c);
      for (int j = 0; j < input_planes_; ++j) {
        const uint64_t bits = _mm512_test_epi8_mask(some, _mm512_set1_epi8(static_cast<char>(1 << j)));
        std::memcpy(to + j * plane, &bits, left > kWord ? 8 : 4);
      }
    }
  }

  // sum x over the window of each output pixel
  std::vector<int32_t> window_sums(const PackedPatch<uint32_t>& patch) const {
    std::vector<int32_t> sums(patch.windows.size());
    if (levels_.base == 0) return sums;
    std::vector<int32_t> counts(patch.plane / words_);
    for (int j = 0; j < input_planes_; ++j) {
      const uint32_t* x = patch.data.data() + j * patch.plane;
      for (int32_t& count : counts)
        for (int w = 0; w < words_; ++w) count += __builtin_popcount(*x++) << j;
    }
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      for (int kx = 0; kx < s_.kernel_w; ++kx) {
        const int32_t* from = counts.data() + ky * s_.dilation_h * patch.width + kx * s_.dilation_w;
        for (size_t i = 0; i < sums.size(); ++i) sums[i] += from[patch.windows[i]];
      }
    return sums;
  }

  template <int Pixels, int Blocks>
  void tile(const PackedPatch<uint32_t>& patch, const Stretches& stretches, const int32_t* sums, size_t first,
            int block) const {
    std::ptrdiff_t windows[Pixels];
    for (int p = 0; p < Pixels; ++p) windows[p] = patch.windows[first + p] * words_;
    __m512i acc[Pixels][Blocks];
    for (auto& pixel : acc)
      for (auto& outputs : pixel) outputs = _mm512_setzero_si512();
    // From the highest power of two down: doubling the sums in between is all the weighing there is.
    for (int power = levels_.bits + input_planes_ - 2; power >= 0; --power) {
      for (auto& pixel : acc)
        for (auto& outputs : pixel) outputs = _mm512_add_epi32(outputs, outputs);
      for (int i = std::max(0, power - input_planes_ + 1); i <= std::min(power, levels_.bits - 1); ++i) {
        const uint32_t* weight = &weight_[(block / kTogether * levels_.bits + i) * plane_];
        const uint32_t* x = patch.data.data() + (power - i) * patch.plane;
        for (const std::ptrdiff_t offset : stretches.offsets) {
          count<Pixels, Blocks>(x + offset, windows, weight, stretches.length, acc);
          weight += stretches.length * kTogether * kBlock;
        }
      }
    }
    alignas(64) int32_t out[Pixels][Blocks][kBlock];
    for (int p = 0; p < Pixels; ++p)
      for (int b = 0; b < Blocks; ++b) {
        const __m512i scaled = _mm512_mullo_epi32(acc[p][b], _mm512_set1_epi32(levels_.step));
        _mm512_store_si512(out[p][b], _mm512_add_epi32(scaled, _mm512_set1_epi32(levels_.base * sums[p])));
      }
    requantizer_.store<Blocks>(&out[0][0][0], &patch.to[first], Pixels, block);
  }

  template <int Pixels, int Blocks>
  static inline void count(const uint32_t* x, const std::ptrdiff_t* windows, const uint32_t* weight, int length,
                           __m512i (&acc)[Pixels][Blocks]) {
    for (int k = 0; k < length; ++k, weight += kTogether * kBlock) {
      __m512i w[Blocks];
      for (int b = 0; b < Blocks; ++b) w[b] = _mm512_loadu_si512(weight + b * kBlock);
#pragma GCC unroll 8
      for (int p = 0; p < Pixels; ++p) {
        const __m512i bits = _mm512_set1_epi32(static_cast<int32_t>(x[windows[p] + k]));
#pragma GCC unroll 2
        for (int b = 0; b < Blocks; ++b)
          acc[p][b] = _mm512_add_epi32(acc[p][b], _mm512_popcnt_epi32(_mm512_and_si512(bits, w[b])));
      }
    }
  }

  ConvSpec s_;
  Levels levels_;
  avx512::Requantizer requantizer_;
  int input_planes_, words_, blocks_;
  size_t plane_ = 0;               // words of one plane of a panel's weights
  std::vector<uint32_t> weight_;   // [panel][plane][tap][word][lane]
};

}  // namespace

OpPointer avx512_binary(const ConvSpec& spec) {
  const Levels levels(spec.weight);
  // base * sum x and step * sums of codes must stay in int32
  const int64_t terms = int64_t(spec.in_channels) * spec.kernel_h * spec.kernel_w;
  const int pairs = levels.bits * bits_of(spec.input_high);
  if (pairs > 4 || terms * 255 * 255 > INT32_MAX) return nullptr;
  // Where it was measured to beat vpdpbusd on bytes: packing and requantizing cost the same for few channels as for many.
  const int channels = std::min(spec.in_channels, spec.out_channels);
  if (channels < (pairs <= 2 ? 64 : 128)) return nullptr;
  return std::make_unique<BitPlanes>(spec, levels);
}

}  // namespace haq
