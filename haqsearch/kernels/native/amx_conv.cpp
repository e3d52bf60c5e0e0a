// Convolutions with tdpbusd: u8 x s8 into int32, a tile of 16 windows x 16 channels at a time, exact at every width.
#include "amx_tile.h"
#include "amx_windows.h"
#include "avx512_epilogue.h"
#include "kernels.h"

namespace haq {
namespace {

using amx::kBytes, amx::kChannels, amx::kRows, amx::Pieces, amx::Weights, amx::Windows;

class Conv final : public Op {
 public:
  explicit Conv(const ConvSpec& s) : cut_(s), requantizer_(s.folded(), s.bound()) {
    const int pieces = s.kernel_h * cut_.count, blocks = (s.out_channels + kChannels - 1) / kChannels;
    for (int block = 0; block < blocks; block += 2) {
      Panel panel{block, std::min(2, blocks - block), {}};
      panel.weight.resize(size_t(pieces) * panel.blocks, Weights{});
      for (int n = block * kChannels; n < std::min(s.out_channels, (block + panel.blocks) * kChannels); ++n)
        for (int c = 0; c < s.in_channels; ++c)
          for (int ky = 0; ky < s.kernel_h; ++ky)
            for (int kx = 0; kx < s.kernel_w; ++kx) {
              const int byte = kx * s.in_channels + c, piece = cut_.piece(byte), place = byte - cut_.begin(piece);
              Weights& w = panel.weight[size_t(ky * cut_.count + piece) * panel.blocks + n / kChannels - block];
              w.value[place / 4][n % kChannels][place % 4] =
                  s.weight[((size_t(n) * s.in_channels + c) * s.kernel_h + ky) * s.kernel_w + kx];
            }
      panels_.push_back(std::move(panel));
    }
    feeder_ = std::make_unique<amx::Feeder>(s, cut_, packed_bytes());
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    if (first >= end) return;
    amx::Configuration configuration;
    feeder_->feed(*in, out, first, end, [&](const Windows& windows, const Pieces& pieces) {
      configuration.set(windows.rows, cut_.bytes);
      for (const Panel& panel : panels_)
        if (panel.blocks == 2) run_panel<2>(panel, windows, pieces);
        else run_panel<1>(panel, windows, pieces);
    });
  }

  const char* method() const override { return "amx int8"; }
  int64_t packed_bytes() const override {
    size_t bytes = 0;
    for (const Panel& panel : panels_) bytes += panel.weight.size() * sizeof(Weights);
    return static_cast<int64_t>(bytes);
  }

 private:
  struct Panel {
    int block, blocks;            // first block of channels, how many (1 or 2)
    std::vector<Weights> weight;  // [piece][block]
  };

  template <int Blocks>
  void run_panel(const Panel& panel, const Windows& windows, const Pieces& pieces) const {
    constexpr int kTiles = 4 / Blocks;
    alignas(64) int32_t sums[4 * kRows * kChannels];
    const Weights* weight = panel.weight.data();
    const int rows = windows.rows, all = windows.count();
    for (int i = 0; i < windows.tiles(); i += kTiles) {
      const uint8_t* const* from = &windows.from[i];
      const int tiles = std::min(kTiles, windows.tiles() - i);
      if (tiles == kTiles) amx::multiply<kTiles, Blocks>(from, rows, pieces, weight, sums);
      else if (tiles == 1) amx::multiply<1, Blocks>(from, rows, pieces, weight, sums);
      else if constexpr (Blocks == 1) {
        if (tiles == 2) amx::multiply<2, 1>(from, rows, pieces, weight, sums);
        else amx::multiply<3, 1>(from, rows, pieces, weight, sums);
      }
      requantizer_.store<Blocks>(sums, &windows.to[i * rows], std::min(tiles * rows, all - i * rows), panel.block);
    }
  }

  amx::Cut cut_;
  std::unique_ptr<amx::Feeder> feeder_;
  avx512::Requantizer requantizer_;
  std::vector<Panel> panels_;
};

}  // namespace

OpPointer amx_conv(const ConvSpec& spec) {
  // Fewer bytes leave most of a tile empty: vpdpbusd takes as long.
  const amx::Cut cut(spec);
  if (spec.groups > 1 || cut.bytes < 12 || spec.kernel_h * cut.stretch < 24) return nullptr;
  return std::make_unique<Conv>(spec);
}

}  // namespace haq
