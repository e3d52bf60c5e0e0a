// 3 x 3 convolution by Winograd's minimal filtering in integers, two by two outputs at a time.
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4.1:
//   Y = A' [(G g G') * (B' d B)] A,  summed over the input channels before A is applied.
//
// Transformed codes and weights lie in int16 (see the algorithms below). Sums are taken modulo 2^32, where additions in any
// order agree; the result is right since |acc| * 2^doublings < 2^31 is asked for.
#include <algorithm>
#include <new>

#include "avx2_conv.h"
#include "avx2_epilogue.h"
#include "avx2_tile.h"

namespace haq::avx2 {
namespace {

constexpr int kPanelTiles = 12;  // transformed at a time
constexpr int64_t kCacheBytes = 512 * 1024, kNearBytes = 2 * 1024 * 1024;

// Stride 1, F(2, 3): 4 multiplications for 2 outputs, where the direct way has 6; 16 instead of 36 in two dimensions.
// G has halves; 2 G has none, so the sums come out four times as large: exact, and the epilogue shifts by two more.
// |B' d B| <= 4 * 255 and |2G g (2G)'| <= 9 * 128.
struct StrideOne {
  static constexpr int kStride = 1, kTile = 4, kDoublings = 2;

  static void input(const __m256i* d, __m256i* t) {
    t[0] = _mm256_sub_epi16(d[0], d[2]);
    t[1] = _mm256_add_epi16(d[1], d[2]);
    t[2] = _mm256_sub_epi16(d[2], d[1]);
    t[3] = _mm256_sub_epi16(d[1], d[3]);
  }
  static void weights(const int* g, int* u) {
    u[0] = 2 * g[0], u[1] = g[0] + g[1] + g[2], u[2] = g[0] - g[1] + g[2], u[3] = 2 * g[2];
  }
  static void output(const __m256i* m, __m256i* y) {
    y[0] = _mm256_add_epi32(_mm256_add_epi32(m[0], m[1]), m[2]);
    y[1] = _mm256_sub_epi32(_mm256_sub_epi32(m[1], m[2]), m[3]);
  }
};

// Stride 2: even inputs meet the outer taps, F(2, 2), 3 multiplications instead of 4; odd ones the middle tap.
//   y0 = d0 g0 + d2 g2 + d1 g1,  y1 = d2 g0 + d4 g2 + d3 g1
// 5 multiplications instead of 6; 25 instead of 36 in two dimensions. |B' d B| <= 2 * 255 and |G g G'| <= 4 * 128.
struct StrideTwo {
  static constexpr int kStride = 2, kTile = 5, kDoublings = 0;

  static void input(const __m256i* d, __m256i* t) {
    t[0] = _mm256_sub_epi16(d[0], d[2]);
    t[1] = d[2];
    t[2] = _mm256_sub_epi16(d[4], d[2]);
    t[3] = d[1];
    t[4] = d[3];
  }
  static void weights(const int* g, int* u) { u[0] = g[0], u[1] = g[0] + g[2], u[2] = g[2], u[3] = u[4] = g[1]; }
  static void output(const __m256i* m, __m256i* y) {
    y[0] = _mm256_add_epi32(_mm256_add_epi32(m[0], m[1]), m[3]);
    y[1] = _mm256_add_epi32(_mm256_add_epi32(m[1], m[2]), m[4]);
  }
};

struct Panel {
  const uint8_t* transformed[kPanelTiles];
  uint8_t* target[kPanelTiles][4];  // the four output pixels; beyond the image: a place nobody reads
  int count = 0;
};

// Walks over the tiles of all images, row by row.
struct Place {
  Place(int64_t index, int down, int across)
      : x(static_cast<int>(index % across)),
        y(static_cast<int>(index / across % down)),
        image(index / across / down),
        down(down),
        across(across) {}

  void next() {
    if (++x < across) return;
    x = 0;
    if (++y == down) y = 0, ++image;
  }

  int x, y;
  int64_t image;
  int down, across;
};

template <typename Algorithm>
class Winograd final : public Op {
 public:
  explicit Winograd(const ConvSpec& spec)
      : pad_h_(spec.pad_h),
        pad_w_(spec.pad_w),
        outputs_(spec.out_channels),
        blocks_((spec.out_channels + kTileChannels - 1) / kTileChannels),
        depth_((spec.in_channels + 15) / 16 * 16),
        requantizer_(spec.folded(), spec.out_channels, spec.bound(), Algorithm::kDoublings) {
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
    const Offsets rows(out.height, in->row), columns(out.width, in->pixel);
    const int across = (out.width + 1) / 2;
    Place place(first * across, (out.height + 1) / 2, across);
    Panel panel;
    for (int64_t done = first * across; done < end * across; done += panel.count) {
      panel.count = static_cast<int>(std::min<int64_t>(kPanelTiles, end * across - done));
      for (int i = 0; i < panel.count; ++i, place.next()) {
        int16_t* const to = memory.data() + i * tile;
        panel.transformed[i] = reinterpret_cast<const uint8_t*>(to);
        aim(out, place, beyond.data(), panel.target[i]);
        transform(in->at(place.image, 2 * kStride * place.y - pad_h_, 2 * kStride * place.x - pad_w_),
                  rows.of(place.y), columns.of(place.x), to);
      }
      for (int block = 0; block < blocks_; ++block) multiply(panel, block);
    }
  }

  const char* method() const override { return "avx2 winograd"; }
  int64_t packed_bytes() const override { return int64_t(blocks_) * block_codes() * 2; }

 private:
  static constexpr int kStride = Algorithm::kStride, kTile = Algorithm::kTile, kPositions = kTile * kTile;

  int64_t block_codes() const { return int64_t(kPositions) * depth_ * kTileChannels; }

  // packed_: [block][position][pair of inputs][16 outputs][2]
  void pack(const int8_t* weight, int n, int c) {
    int rows[3][kTile], u[kTile][kTile];
    for (int y = 0; y < 3; ++y) {
      const int g[3] = {weight[3 * y], weight[3 * y + 1], weight[3 * y + 2]};
      Algorithm::weights(g, rows[y]);
    }
    for (int x = 0; x < kTile; ++x) {
      const int g[3] = {rows[0][x], rows[1][x], rows[2][x]};
      int column[kTile];
      Algorithm::weights(g, column);
      for (int y = 0; y < kTile; ++y) u[y][x] = column[y];
    }
    int16_t* to = packed_.get() + n / kTileChannels * block_codes();
    for (int position = 0; position < kPositions; ++position)
      to[((position * depth_ + c) / 2 * kTileChannels + n % kTileChannels) * 2 + c % 2] =
          static_cast<int16_t>(u[position / kTile][position % kTile]);
  }

  // Bytes from a tile's first row (or column) to each of them. Those that only outputs beyond the image would need are
  // replaced by the last one there is.
  struct Offsets {
    Offsets(int outputs, std::ptrdiff_t stride) : last((outputs + 1) / 2 - 1) {
      for (int k = 0; k < kTile; ++k) {
        inner[k] = k * stride;
        outer[k] = std::min(k, kStride * (outputs - 1 - 2 * last) + 2) * stride;
      }
    }

    const std::ptrdiff_t* of(int tile) const { return tile == last ? outer : inner; }

    int last;
    std::ptrdiff_t inner[kTile], outer[kTile];
  };

  static void aim(const View& out, const Place& place, uint8_t* beyond, uint8_t** target) {
    uint8_t* const corner = out.at(place.image, 2 * place.y, 2 * place.x);
    const bool right = 2 * place.x + 1 < out.width, below = 2 * place.y + 1 < out.height;
    target[0] = corner;
    target[1] = right ? corner + out.pixel : beyond;
    target[2] = below ? corner + out.row : beyond;
    target[3] = right && below ? corner + out.row + out.pixel : beyond;
  }

  // Channels beyond the input's are whatever lies there: their weights are zero.
  void transform(const uint8_t* from, const std::ptrdiff_t* rows, const std::ptrdiff_t* columns, int16_t* to) const {
    for (int c = 0; c < depth_; c += 16) {
      __m256i t[kTile][kTile];
#pragma GCC unroll 5
      for (int x = 0; x < kTile; ++x) {
        __m256i d[kTile];
#pragma GCC unroll 5
        for (int y = 0; y < kTile; ++y)
          d[y] = _mm256_cvtepu8_epi16(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + rows[y] + columns[x] + c)));
        Algorithm::input(d, t[x]);
      }
#pragma GCC unroll 5
      for (int y = 0; y < kTile; ++y) {
        __m256i row[kTile], v[kTile];
#pragma GCC unroll 5
        for (int x = 0; x < kTile; ++x) row[x] = t[x][y];
        Algorithm::input(row, v);
#pragma GCC unroll 5
        for (int x = 0; x < kTile; ++x)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (kTile * y + x) * depth_ + c), v[x]);
      }
    }
  }

  void multiply(const Panel& panel, int block) const {
    alignas(32) int32_t sums[kPanelTiles][kPositions][kTileChannels];
    const int8_t* weights = reinterpret_cast<const int8_t*>(packed_.get() + block * block_codes());
    const std::ptrdiff_t slab = std::ptrdiff_t(depth_) * kTileChannels * 2;  // weights of one position
    for (int position = 0; position < kPositions; ++position, weights += slab)
      for (int i = 0; i < panel.count; i += kTilePixels) {
        fetch(weights + slab, slab, i, panel.count);
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

  // Asks for the next position's weights while this one's are worked on: large layers read them from beyond the cache.
  void fetch(const int8_t* next, std::ptrdiff_t bytes, int tile, int tiles) const {
    const int8_t* const end = reinterpret_cast<const int8_t*>(packed_.get()) + packed_bytes();
    if (packed_bytes() <= kCacheBytes || next == end) return;
    const int8_t* const stop = next + bytes * std::min(tile + kTilePixels, tiles) / tiles;
    for (next += bytes * tile / tiles; next < stop; next += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
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
      __m256i half[2][kTile];
#pragma GCC unroll 5
      for (int x = 0; x < kTile; ++x) {
        __m256i m[kTile], y[2];
#pragma GCC unroll 5
        for (int k = 0; k < kTile; ++k)
          m[k] = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums[kTile * k + x] + 8 * h));
        Algorithm::output(m, y);
        half[0][x] = y[0], half[1][x] = y[1];
      }
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        __m256i y[2];
        Algorithm::output(half[k], y);
        acc[2 * k][h] = y[0], acc[2 * k + 1][h] = y[1];
      }
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

template <typename Algorithm>
OpPointer make(const ConvSpec& spec) {
  if (spec.bound() > INT32_MAX >> Algorithm::kDoublings) return nullptr;
  auto op = std::make_unique<Winograd<Algorithm>>(spec);
  return op->fast() ? std::move(op) : nullptr;
}

}  // namespace

OpPointer make_winograd(const ConvSpec& s, double steps_a_block) {
  const bool fits = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == s.stride_w && s.stride_h <= 2 &&
                    s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1;
  // Few channels: the transforms cost more than they save.
  if (!fits || s.in_channels < 12 || s.out_channels < 12) return nullptr;
  // The saving is smaller for stride 2, and where direct int8 sums go on for many steps.
  if (s.stride_h == 2 && steps_a_block > 1.5) return nullptr;
  if (steps_a_block > 8 && s.in_channels < 32) return nullptr;
  OpPointer op = s.stride_h == 1 ? make<StrideOne>(s) : make<StrideTwo>(s);
  // It is lost where the weights, more than twice the direct ones, do not stay near.
  const int64_t near = s.stride_h == 2 ? kNearBytes : steps_a_block > 4 ? 2 * kNearBytes : INT64_MAX;
  return op && op->packed_bytes() > near ? nullptr : std::move(op);
}

}  // namespace haq::avx2
