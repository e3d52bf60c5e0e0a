// Depthwise convolution, whatever the width of a register: channels in lanes, four taps a multiplication.
//
// Four pixels of a row are interleaved so that each 32-bit lane holds them for one channel. One such quad serves two
// neighbouring outputs of stride 1: the even one has its weights at the front of the lanes, the odd one moved by a tap.
// The 16-byte lanes of a register never mix, so each may be another row of the image: few channels fill a register, too.
//
// Internal linkage: each instruction set compiles its own copy with its own instructions.
#pragma once

#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "kernels.h"

namespace haq {
namespace {

// Channels that share a register with the same channels of other rows.
struct ChannelPanel {
  int channel, channels, rows;
};

// As many channels at a time as there are, a whole register of `Lanes` 16-byte lanes at most.
template <int Lanes>
std::vector<ChannelPanel> split_channels(int channels) {
  std::vector<ChannelPanel> panels;
  for (int c = 0; c < channels;) {
    int rows = 1;
    while (rows < Lanes && channels - c < 16 * Lanes / rows) rows *= 2;
    panels.push_back({c, std::min(16 * Lanes / rows, channels - c), rows});
    c += panels.back().channels;
  }
  return panels;
}

// Which channel of a panel byte group `lane`, `sum`, `place` belongs to, -1 for none: sums[sum] has 4 channels of each lane.
template <int Lanes>
int channel_of(const ChannelPanel& panel, int lane, int sum, int place) {
  const int c = lane % (Lanes / panel.rows) * 16 + 4 * sum + place;
  return c < panel.channels ? panel.channel + c : -1;
}

// The epilogue's entries in the order of the sums' lanes.
template <int Lanes>
Epilogue interleaved(const Epilogue& e, const std::vector<ChannelPanel>& panels) {
  constexpr size_t kRegister = 16 * Lanes, kSums = 4 * Lanes;
  Epilogue to = e;
  const size_t size = panels.size() * kRegister;
  to.multiplier.assign(size, 0), to.offset.assign(size, 0), to.shift.assign(size, 32);
  for (size_t i = 0; i < size; ++i) {
    const int at = static_cast<int>(i % kRegister % kSums), sum = static_cast<int>(i % kRegister / kSums);
    const int c = channel_of<Lanes>(panels[i / kRegister], at / 4, sum, at % 4);
    if (c < 0) continue;
    to.multiplier[i] = e.multiplier[c], to.offset[i] = e.offset[c], to.shift[i] = e.shift[c];
  }
  return to;
}

// Isa has: kLanes (of 16 bytes), kColumns (outputs of a tile, even), Bytes and Sum (registers), Weights (what one register
// of pixels is multiplied with), Requantizer, and the functions called below.
template <typename Isa>
class Depthwise final : public Op {
 public:
  explicit Depthwise(const ConvSpec& s)
      : s_(s),
        shared_(s.stride_w == 1 && s.dilation_w == 1),
        quads_((s.kernel_w + shared_ + 3) / 4),
        panels_(split_channels<Isa::kLanes>(s.out_channels)),
        requantizer_(interleaved<Isa::kLanes>(s.folded(), panels_), s.bound()) {
    pack();
    s_.weight.clear();
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (size_t i = 0; i < panels_.size(); ++i) {
      const bool shared = shared_ && out.width >= Isa::kColumns;
      if (panels_[i].rows == 1) run_panel<1>(i, shared, *in, out, first, end);
      else if (panels_[i].rows == 2) run_panel<2>(i, shared, *in, out, first, end);
      else if constexpr (Isa::kLanes == 4) run_panel<4>(i, shared, *in, out, first, end);
    }
  }

  const char* method() const override { return Isa::kMethod; }
  int64_t packed_bytes() const override {
    return static_cast<int64_t>(weights_.size() * sizeof(typename Isa::Weights));
  }

 private:
  static constexpr int kRegister = 16 * Isa::kLanes, kSums = kRegister / 4, kColumns = Isa::kColumns;
  static constexpr int kTiles = 8;  // so many tiles are computed before they become codes

  // [panel][row of the kernel][quad][even, odd][sum]
  size_t weights_of(size_t panel) const { return panel * s_.kernel_h * quads_ * 8; }

  void pack() {
    weights_.resize(weights_of(panels_.size()));
    for (size_t p = 0; p < panels_.size(); ++p)
      for (int at = 0; at < s_.kernel_h * quads_ * 8; ++at)
        for (int lane = 0; lane < Isa::kLanes; ++lane)
          for (int i = 0; i < 16; ++i) {
            const int sum = at % 4, odd = at / 4 % 2, quad = at / 8 % quads_, ky = at / 8 / quads_;
            const int c = channel_of<Isa::kLanes>(panels_[p], lane, sum, i / 4), kx = 4 * quad + i % 4 - odd;
            if (c < 0 || kx < 0 || kx >= s_.kernel_w) continue;
            const int8_t weight = s_.weight[(size_t(c) * s_.kernel_h + ky) * s_.kernel_w + kx];
            weights_[weights_of(p) + at].set(16 * lane + i, weight);
          }
  }

  // Where the taps of a window lie.
  struct Window {
    int rows, quads;
    int gap;  // packed weights of a kernel row that are not wanted
    std::ptrdiff_t row;
    std::vector<std::ptrdiff_t> taps;  // 4 * quads; those that no weight is for repeat the last
  };

  template <int Rows>
  void run_panel(size_t index, bool shared, const View& in, const View& out, int64_t first, int64_t end) const {
    const ChannelPanel& panel = panels_[index];
    const int quads = shared ? quads_ : (s_.kernel_w + 3) / 4;
    Window window{s_.kernel_h, quads, 8 * (quads_ - quads), s_.dilation_h * in.row, {}};
    for (int t = 0; t < 4 * window.quads; ++t)
      window.taps.push_back(std::min(t, shared ? s_.kernel_w : s_.kernel_w - 1) * s_.dilation_w * in.pixel);
    for (int64_t unit = first; unit < end; unit += Rows) {
      const uint8_t* from[Rows];
      uint8_t* to[Rows];
      for (int r = 0; r < Rows; ++r) {  // behind the last row the last again
        const int64_t u = std::min(unit + r, end - 1), image = u / out.height;
        const int y = static_cast<int>(u % out.height);
        from[r] = in.at(image, y * s_.stride_h - s_.pad_h, -s_.pad_w) + panel.channel;
        to[r] = out.at(image, y, 0) + panel.channel;
      }
      if (shared) run_rows<Rows, true>(index, window, from, to, in.pixel, out);
      else run_rows<Rows, false>(index, window, from, to, in.pixel, out);
    }
  }

  template <int Rows, bool Shared>
  void run_rows(size_t index, const Window& window, const uint8_t* const* from, uint8_t* const* to,
                std::ptrdiff_t pixel, const View& out) const {
    alignas(64) int32_t sums[kTiles * kColumns * kRegister];
    int columns[kTiles * kColumns];
    for (int x = 0; x < out.width; x += kTiles * kColumns) {
      const int end = std::min(x + kTiles * kColumns, out.width);
      int count = 0;
      for (int tile = x; tile < end; tile += kColumns, count += kColumns) {
        std::ptrdiff_t places[kColumns];
        for (int i = 0; i < kColumns; ++i) {  // the last tile overlaps the one before it, or repeats its last column
          const int column = Shared ? std::min(tile, out.width - kColumns) + i : std::min(tile + i, out.width - 1);
          columns[count + i] = column;
          places[i] = column * s_.stride_w * pixel;
        }
        const auto* weight = weights_.data() + weights_of(index);
        if (window.quads == 1) multiply<Rows, Shared, true>(window, weight, from, places, sums + count * kRegister);
        else multiply<Rows, Shared, false>(window, weight, from, places, sums + count * kRegister);
      }
      const int panel = static_cast<int>(index), channels = panels_[index].channels;
      Isa::template store<Rows>(requantizer_, panel, channels, sums, columns, count, to, out.pixel);
    }
  }

  // One tile: sums[column][4][kSums]. With one quad a row of the kernel its places stay in registers.
  template <int Rows, bool Shared, bool OneQuad>
  static void multiply(const Window& window, const typename Isa::Weights* weight, const uint8_t* const* from,
                       const std::ptrdiff_t* places, int32_t* sums) {
    typename Isa::Sum sum[kColumns * 4];
#pragma GCC unroll 16
    for (int i = 0; i < kColumns * 4; ++i) sum[i] = Isa::zero();
    const uint8_t* row[Rows];
    for (int r = 0; r < Rows; ++r) row[r] = from[r];
    std::ptrdiff_t tap[4];
    for (int i = 0; i < 4; ++i) tap[i] = window.taps[i];
    for (int ky = 0; ky < window.rows; ++ky) {
      for (int q = 0; q < (OneQuad ? 1 : window.quads); ++q, weight += 8) {
        for (int i = 0; !OneQuad && i < 4; ++i) tap[i] = window.taps[4 * q + i];
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; c += 1 + Shared) {
          typename Isa::Bytes quad[4];
          const auto pixel = [&](int i) { return Isa::template load<Rows>(row, places[c] + tap[i]); };
          Isa::interleave(pixel(0), pixel(1), pixel(2), pixel(3), quad);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            sum[4 * c + i] = Isa::add(sum[4 * c + i], quad[i], weight[i]);
            if constexpr (Shared) sum[4 * c + 4 + i] = Isa::add(sum[4 * c + 4 + i], quad[i], weight[4 + i]);
          }
        }
      }
      weight += window.gap;
      for (int r = 0; r < Rows; ++r) row[r] += window.row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kColumns * 4; ++i) Isa::spill(sums + i * kSums, sum[i]);
  }

  ConvSpec s_;
  bool shared_;
  int quads_;  // of a kernel row, when two outputs share them
  std::vector<ChannelPanel> panels_;
  typename Isa::Requantizer requantizer_;
  std::vector<typename Isa::Weights> weights_;
};

}  // namespace
}  // namespace haq
