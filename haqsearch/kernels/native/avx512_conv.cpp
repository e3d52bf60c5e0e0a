// Convolutions with vpdpbusd: u8 x s8, four products into an int32 lane, exact at every width.
//
// A direct convolution as a matrix product: no im2col. A tile is some output pixels x 16 or 32 output channels whose
// accumulators stay in registers; a step takes four bytes of each pixel, broadcast, times four weights of each channel.
#include <array>
#include <utility>

#include "avx512_epilogue.h"
#include "kernels.h"
#include "lines.h"

namespace haq {
namespace {

using avx512::kBlock;

// A run of pixels beside each other: what tiles are made of, so that one address stands for several windows.
struct Group {
  const uint8_t* from;  // the first pixel's window, at (0, 0) of the kernel
  uint8_t* to;
};

// Four weights (inputs) of each of 16 output channels.
struct alignas(64) Weights {
  int8_t value[kBlock][4];
};

// What a window is multiplied with: `stretches` pieces of 4 * steps bytes, beginning at these places of the window.
struct Window {
  const std::ptrdiff_t* places;
  int stretches, steps;
  std::ptrdiff_t pixel;  // from one window of a group to the next
  std::ptrdiff_t channel = 0;
};

inline __m512i broadcast(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return _mm512_set1_epi32(four);
}

// Groups * Pixels windows x Blocks * 16 channels -> out[window][block][16].
template <int Blocks, int Pixels, int Groups>
void multiply(const Group* groups, const Window& window, const Weights* weight, int32_t* out) {
  constexpr int kWindows = Groups * Pixels;
  __m512i acc[kWindows * Blocks];
#pragma GCC unroll 32
  for (int i = 0; i < kWindows * Blocks; ++i) acc[i] = _mm512_setzero_si512();
  const std::ptrdiff_t pixel = window.pixel;
  for (int s = 0; s < window.stretches; ++s) {
    std::array<const uint8_t*, Groups> from;
    for (int g = 0; g < Groups; ++g) from[g] = groups[g].from + window.channel + window.places[s];
    for (int k = 0; k < window.steps; ++k, weight += Blocks) {
      __m512i w[Blocks];
      for (int b = 0; b < Blocks; ++b) w[b] = avx512::load(weight + b);
#pragma GCC unroll 8
      for (int g = 0; g < Groups; ++g) {
#pragma GCC unroll 8
        for (int p = 0; p < Pixels; ++p) {
          const __m512i x = broadcast(from[g] + p * pixel);
#pragma GCC unroll 2
          for (int b = 0; b < Blocks; ++b) {
            __m512i& sum = acc[(g * Pixels + p) * Blocks + b];
            sum = _mm512_dpbusd_epi32(sum, x, w[b]);
          }
        }
        from[g] += 4;
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < kWindows * Blocks; ++i) _mm512_store_si512(out + i * kBlock, acc[i]);
}

using Multiply = void (*)(const Group*, const Window&, const Weights*, int32_t*);

template <int Blocks, int Pixels, int... Less>
constexpr std::array<Multiply, sizeof...(Less)> sizes(std::integer_sequence<int, Less...>) {
  return {multiply<Blocks, Pixels, Less + 1>...};
}

// The tiles of 1, 2, ... groups. The largest leaves registers for the weights and a broadcast or two.
template <int Blocks, int Pixels>
struct Tiles {
  static constexpr int kLargest = std::min(8, 28 / (Blocks * Pixels));
  static constexpr auto kMultiply = sizes<Blocks, Pixels>(std::make_integer_sequence<int, kLargest>());
};

// How the bytes of a window lie: kernel rows in one stretch each, or every tap apart.
struct Packing {
  int stretches_a_row = 1;
  struct Panel {
    int block, blocks, steps;  // first block of channels, how many (1 or 2), steps of a stretch
    std::ptrdiff_t channel;    // first input channel
    std::vector<Weights> weight;
  };
  std::vector<Panel> panels;

  // `merged`: the taps of a kernel row follow each other without a gap, and are packed so.
  Packing(const ConvSpec& s, bool merged) : stretches_a_row(merged ? 1 : s.kernel_w) {
    const int blocks = (s.out_channels + kBlock - 1) / kBlock, together = s.groups > 1 ? 1 : 2;
    for (int block = 0; block < blocks; block += together) add(s, block, std::min(together, blocks - block));
  }

 private:
  // Channels of several groups in one block read the inputs of all of them, with zeros for the others' weights.
  void add(const ConvSpec& s, int block, int blocks) {
    const int inputs = s.group_inputs(), outputs = s.out_channels / s.groups;
    const int begin = block * kBlock, end = std::min(begin + blocks * kBlock, s.out_channels);
    const int channel = begin / outputs * inputs, channels = ((end - 1) / outputs + 1) * inputs - channel;
    const int taps = s.kernel_w / stretches_a_row, steps = (taps * channels + 3) / 4;
    Panel panel{block, blocks, steps, channel, {}};
    panel.weight.resize(size_t(s.kernel_h) * stretches_a_row * steps * blocks, Weights{});
    for (int n = begin; n < end; ++n)
      for (int c = 0; c < inputs; ++c)
        for (int ky = 0; ky < s.kernel_h; ++ky)
          for (int kx = 0; kx < s.kernel_w; ++kx) {
            const int stretch = ky * stretches_a_row + kx / taps;
            const int place = kx % taps * channels + n / outputs * inputs - channel + c;
            Weights& w = panel.weight[(size_t(stretch) * steps + place / 4) * blocks + (n - begin) / kBlock];
            w.value[n % kBlock][place % 4] = s.weight[((size_t(n) * inputs + c) * s.kernel_h + ky) * s.kernel_w + kx];
          }
    panels.push_back(std::move(panel));
  }
};

class Conv final : public Op {
 public:
  explicit Conv(const ConvSpec& spec) : s_(spec), requantizer_(spec.folded(), spec.bound()) {
    const bool adjacent = s_.groups == 1 && s_.dilation_w == 1;
    packings_.emplace_back(s_, adjacent);
    if (adjacent && s_.kernel_w > 1) packings_.emplace_back(s_, false);
    s_.weight.clear();
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const Lines lines(s_, *in, out, end - first);
    const int by4 = (lines.length + 3) / 4 * 4, by7 = (lines.length + 6) / 7 * 7;
    if (lines.length < 4) run_lines<1>(lines, *in, out, first);
    else if (by7 <= by4 && lines.length >= 7) run_lines<7>(lines, *in, out, first);
    else run_lines<4>(lines, *in, out, first);
  }

  const char* method() const override { return "avx512 vnni"; }
  int64_t packed_bytes() const override {
    size_t bytes = 0;
    for (const Packing::Panel& panel : packings_[0].panels) bytes += panel.weight.size() * sizeof(Weights);
    return static_cast<int64_t>(bytes);
  }

 private:
  static constexpr int kGroups = 96;  // so many are listed before they are computed, channel by channel

  template <int Pixels>
  void run_lines(const Lines& lines, const View& in, const View& out, int64_t first) const {
    const Packing& packing = packings_[packings_.size() > 1 && in.pixel != s_.in_channels];
    std::vector<std::ptrdiff_t> places;
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      for (int i = 0; i < packing.stretches_a_row; ++i)
        places.push_back(ky * s_.dilation_h * in.row + i * s_.dilation_w * in.pixel);
    const Window window{places.data(), static_cast<int>(places.size()), 0, s_.stride_w * in.pixel};

    Group groups[kGroups];
    int count = 0;
    for (int64_t line = 0; line < lines.count; ++line) {
      const int64_t image = (first + line) / out.height;
      const int y = static_cast<int>((first + line) % out.height);
      const uint8_t* from = in.at(image, y * s_.stride_h - s_.pad_h, -s_.pad_w);
      uint8_t* to = out.at(image, y, 0);
      for (int x = 0; x < lines.length; x += Pixels) {
        const int start = std::min(x, lines.length - Pixels);  // the last group overlaps the one before it
        groups[count++] = {from + start * window.pixel, to + start * out.pixel};
        if (count == kGroups) flush<Pixels>(packing, window, groups, std::exchange(count, 0), out.pixel);
      }
    }
    flush<Pixels>(packing, window, groups, count, out.pixel);
  }

  template <int Pixels>
  void flush(const Packing& packing, const Window& window, const Group* groups, int count, std::ptrdiff_t pixel) const {
    for (const Packing::Panel& panel : packing.panels)
      if (panel.blocks == 2) run_panel<2, Pixels>(panel, window, groups, count, pixel);
      else run_panel<1, Pixels>(panel, window, groups, count, pixel);
  }

  template <int Blocks, int Pixels>
  void run_panel(const Packing::Panel& panel, Window window, const Group* groups, int count,
                 std::ptrdiff_t pixel) const {
    using T = Tiles<Blocks, Pixels>;
    alignas(64) int32_t accumulators[T::kLargest * Pixels * Blocks * kBlock];
    uint8_t* to[T::kLargest * Pixels];
    window.steps = panel.steps, window.channel = panel.channel;
    for (int i = 0; i < count; i += T::kLargest) {
      const int size = std::min(T::kLargest, count - i);
      for (int g = 0; g < size; ++g)
        for (int p = 0; p < Pixels; ++p) to[g * Pixels + p] = groups[i + g].to + p * pixel;
      T::kMultiply[size - 1](groups + i, window, panel.weight.data(), accumulators);
      requantizer_.store<Blocks>(accumulators, to, size * Pixels, panel.block);
    }
  }

  ConvSpec s_;
  avx512::Requantizer requantizer_;
  std::vector<Packing> packings_;
};

}  // namespace

OpPointer avx512_conv(const ConvSpec& spec) { return std::make_unique<Conv>(spec); }

}  // namespace haq
