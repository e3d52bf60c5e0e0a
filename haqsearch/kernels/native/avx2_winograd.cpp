// 3 x 3 convolution of stride 1 by Winograd's F(2 x 2, 3 x 3) in integers: 16 multiplications where the direct way has 36.
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4.1:
//   Y = A' [(G g G') * (B' d B)] A,  summed over the input channels before A is applied.
//
// G has halves; 2 G has none, so the sums come out four times as large: exact, and the epilogue shifts by two more.
// Ranges: |B' d B| <= 4 * 255 = 1020 and |2G g (2G)'| <= 9 * 128 = 1152 lie in int16. Sums are taken modulo 2^32, where
// additions in any order agree; the result 4 acc is right since |4 acc| < 2^31 is asked for.
#include <algorithm>
#include <new>

#include "avx2_conv.h"
#include "avx2_epilogue.h"
#include "avx2_tile.h"

namespace haq::avx2 {
namespace {

constexpr int kPositions = 16;    // of a transformed 4 x 4 tile
constexpr int kPanelTiles = 24;   // transformed at a time
constexpr int kDoublings = 2;     // results are 4 acc

// B' applied to four vectors: d0 - d2, d1 + d2, d2 - d1, d1 - d3.
inline void transform_input(const __m256i (&d)[4], __m256i (&t)[4]) {
  t[0] = _mm256_sub_epi16(d[0], d[2]);
  t[1] = _mm256_add_epi16(d[1], d[2]);
  t[2] = _mm256_sub_epi16(d[2], d[1]);
  t[3] = _mm256_sub_epi16(d[1], d[3]);
}

// A' applied to four vectors: m0 + m1 + m2, m1 - m2 - m3.
inline void transform_output(__m256i m0, __m256i m1, __m256i m2, __m256i m3, __m256i& y0, __m256i& y1) {
  y0 = _mm256_add_epi32(_mm256_add_epi32(m0, m1), m2);
  y1 = _mm256_sub_epi32(_mm256_sub_epi32(m1, m2), m3);
}

// (2G) applied to three numbers: 2 g0, g0 + g1 + g2, g0 - g1 + g2, 2 g2.
void transform_weights(const int (&g)[3], int (&u)[4]) {
  u[0] = 2 * g[0], u[1] = g[0] + g[1] + g[2], u[2] = g[0] - g[1] + g[2], u[3] = 2 * g[2];
}

struct Panel {
  const uint8_t* row[kPanelTiles][4];    // first pixel of the tile's four input rows
  std::ptrdiff_t column[kPanelTiles][4];  // bytes to its four columns
  uint8_t* target[kPanelTiles][4];        // the four output pixels; beyond the image: a place nobody reads
  const uint8_t* transformed[kPanelTiles];
  int count = 0;
};

class Winograd final : public Op {
 public:
  explicit Winograd(const ConvSpec& spec)
      : pad_h_(spec.pad_h),
        pad_w_(spec.pad_w),
        outputs_(spec.out_channels),
        blocks_((spec.out_channels + kTileChannels - 1) / kTileChannels),
        depth_((spec.in_channels + 15) / 16 * 16),
        requantizer_(spec.folded(), spec.out_channels, spec.bound(), kDoublings) {
    packed_.reset(static_cast<int16_t*>(::operator new(packed_bytes(), std::align_val_t(64))));
    std::fill_n(packed_.get(), packed_bytes() / 2, int16_t(0));
    for (int n = 0; n < spec.out_channels; ++n)
      for (int c = 0; c < spec.in_channels; ++c) pack(spec.weight.data() + (size_t(n) * spec.in_channels + c) * 9, n, c);
  }

  bool fast() const { return requantizer_.vector(); }

  // Pairs of rows.
  int64_t units(const View& out, int images) const override { return int64_t(images) * ((out.height + 1) / 2); }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    thread_local std::vector<int16_t> memory;
    thread_local std::vector<uint8_t> beyond;
    const size_t tile = size_t(kPositions) * depth_ + 32;  // 32: tiles do not fall on the same cache sets
    if (memory.size() < tile * kPanelTiles) memory.resize(tile * kPanelTiles);
    if (beyond.size() < size_t(blocks_) * kTileChannels * 2) beyond.resize(size_t(blocks_) * kTileChannels * 2);
    const int across = (out.width + 1) / 2;
    Panel panel;
    for (int64_t done = first * across; done < end * across; done += panel.count) {
      panel.count = static_cast<int>(std::min<int64_t>(kPanelTiles, end * across - done));
      for (int i = 0; i < panel.count; ++i) {
        locate(*in, out, done + i, i, beyond.data(), panel);
        panel.transformed[i] = reinterpret_cast<const uint8_t*>(memory.data() + i * tile);
        transform(panel, i, memory.data() + i * tile);
      }
      for (int block = 0; block < blocks_; ++block) multiply(panel, block);
    }
  }

  const char* method() const override { return "avx2 winograd"; }
  int64_t packed_bytes() const override { return int64_t(blocks_) * block_codes() * 2; }

 private:
  int64_t block_codes() const { return int64_t(kPositions) * depth_ * kTileChannels; }

  // packed_: [block][position][pair of inputs][16 outputs][2]
  void pack(const int8_t* weight, int n, int c) {
    int rows[3][4], u[4][4];
    for (int y = 0; y < 3; ++y) {
      const int g[3] = {weight[3 * y], weight[3 * y + 1], weight[3 * y + 2]};
      transform_weights(g, rows[y]);
    }
    for (int x = 0; x < 4; ++x) {
      const int g[3] = {rows[0][x], rows[1][x], rows[2][x]};
      int column[4];
      transform_weights(g, column);
      for (int y = 0; y < 4; ++y) u[y][x] = column[y];
    }
    int16_t* to = packed_.get() + n / kTileChannels * block_codes();
    for (int position = 0; position < kPositions; ++position)
      to[((position * depth_ + c) / 2 * kTileChannels + n % kTileChannels) * 2 + c % 2] =
          static_cast<int16_t>(u[position / 4][position % 4]);
  }

  // Rows and columns that only outputs beyond the image would need are replaced by the last ones there are.
  void locate(const View& in, const View& out, int64_t index, int i, uint8_t* beyond, Panel& panel) const {
    const int across = (out.width + 1) / 2, down = (out.height + 1) / 2;
    const int x = static_cast<int>(index % across) * 2, y = static_cast<int>(index / across % down) * 2;
    const int64_t image = index / across / down;
    for (int k = 0; k < 4; ++k) {
      panel.row[i][k] = in.at(image, std::min(y + k, out.height + 1) - pad_h_, 0);
      panel.column[i][k] = (std::min(x + k, out.width + 1) - pad_w_) * in.pixel;
      const bool inside = y + k / 2 < out.height && x + k % 2 < out.width;
      panel.target[i][k] = inside ? out.at(image, y + k / 2, x + k % 2) : beyond;
    }
  }

  // Channels beyond the input's are whatever lies there: their weights are zero.
  void transform(const Panel& panel, int i, int16_t* to) const {
    for (int c = 0; c < depth_; c += 16) {
      __m256i t[4][4], d[4], v[4];
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
#pragma GCC unroll 4
        for (int y = 0; y < 4; ++y)
          d[y] = _mm256_cvtepu8_epi16(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(panel.row[i][y] + panel.column[i][x] + c)));
        transform_input(d, t[x]);
      }
#pragma GCC unroll 4
      for (int y = 0; y < 4; ++y) {
        const __m256i row[4] = {t[0][y], t[1][y], t[2][y], t[3][y]};
        transform_input(row, v);
#pragma GCC unroll 4
        for (int x = 0; x < 4; ++x)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (4 * y + x) * depth_ + c), v[x]);
      }
    }
  }

  void multiply(const Panel& panel, int block) const {
    alignas(32) int32_t sums[kPanelTiles][kPositions][kTileChannels];
    const int8_t* weights = reinterpret_cast<const int8_t*>(packed_.get() + block * block_codes());
    for (int position = 0; position < kPositions; ++position, weights += depth_ * kTileChannels * 2)
      for (int i = 0; i < panel.count; i += kTilePixels) {
        switch (panel.count - i) {
          case 1: tiles<1>(panel.transformed + i, position, weights, sums + i); break;
          case 2: tiles<2>(panel.transformed + i, position, weights, sums + i); break;
          case 3: tiles<3>(panel.transformed + i, position, weights, sums + i); break;
          case 4: tiles<4>(panel.transformed + i, position, weights, sums + i); break;
          case 5: tiles<5>(panel.transformed + i, position, weights, sums + i); break;
          default: tiles<6>(panel.transformed + i, position, weights, sums + i);
        }
      }
    for (int i = 0; i < panel.count; ++i) finish(panel.target[i], block, sums[i]);
  }

  template <int Tiles>
  void tiles(const uint8_t* const* transformed, int position, const int8_t* weights,
             int32_t (*sums)[kPositions][kTileChannels]) const {
    __m256i acc[Tiles][2];
    const Run run{0, depth_ / 2, true};
    accumulate<Kind::kWide, Tiles, 2>(transformed, std::ptrdiff_t(position) * depth_ * 2, &run, &run + 1, weights, acc);
#pragma GCC unroll 6
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) _mm256_store_si256(reinterpret_cast<__m256i*>(sums[i][position] + 8 * h), acc[i][h]);
  }

  void finish(uint8_t* const* targets, int block, const int32_t (&sums)[kPositions][kTileChannels]) const {
    __m256i acc[4][2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m256i y[4][2];
#pragma GCC unroll 4
      for (int x = 0; x < 4; ++x) {
        const auto m = [&](int k) {
          return _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[4 * k + x] + 8 * h));
        };
        transform_output(m(0), m(1), m(2), m(3), y[x][0], y[x][1]);
      }
      for (int k = 0; k < 2; ++k) transform_output(y[0][k], y[1][k], y[2][k], y[3][k], acc[2 * k][h], acc[2 * k + 1][h]);
    }
    const int channel = block * kTileChannels;
    requantizer_.store_tile<4, 2>(targets, std::ptrdiff_t(channel) * (requantizer_.wide() ? 2 : 1), channel,
                                  std::min(kTileChannels, outputs_ - channel), acc);
  }

  struct Free {
    void operator()(int16_t* p) const { ::operator delete(p, std::align_val_t(64)); }
  };

  int pad_h_, pad_w_, outputs_, blocks_, depth_;
  Requantizer requantizer_;
  std::unique_ptr<int16_t, Free> packed_;
};

}  // namespace

OpPointer make_winograd(const ConvSpec& s) {
  const bool fits = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
                    s.dilation_w == 1 && s.groups == 1 && s.bound() < (int64_t(1) << 29);
  // few channels: the transforms cost more than they save
  if (!fits || s.in_channels < 12 || s.out_channels < 12) return nullptr;
  auto op = std::make_unique<Winograd>(s);
  return op->fast() ? std::move(op) : nullptr;
}

}  // namespace haq::avx2
