// 3 x 3 convolution by Winograd's minimal filtering in integers, a tile of outputs at a time.
// Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016, section 4.1:
//   Y = A' [(G g G') * (B' d B)] A,  summed over the input channels before A is applied.
//
// Transformed codes and weights lie in int16 (see avx2_winograd.h), or with few bits in bytes. Sums are taken modulo
// 2^32, where additions in any order agree; the result is right since |acc| * 2^doublings < 2^31 is asked for.
//
// Products that count alike in A' [] A, a class of rows and columns, are summed together: a cell.
#include <algorithm>
#include <cstring>

#include "avx2_conv.h"
#include "avx2_epilogue.h"
#include "avx2_tile.h"
#include "avx2_winograd.h"
#include "avx2_winograd_transform.h"
#include "avx2_winograd_weights.h"

namespace haq::avx2 {
namespace {

constexpr int64_t kCacheBytes = 512 * 1024, kNearBytes = 2 * 1024 * 1024;

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

template <typename Algorithm, typename Lanes>
class Winograd final : public Op {
 public:
  explicit Winograd(const ConvSpec& spec)
      : pad_h_(spec.pad_h),
        pad_w_(spec.pad_w),
        outputs_(spec.out_channels),
        requantizer_(spec.folded(), spec.out_channels, spec.bound(), Algorithm::kDoublings),
        weights_(spec, raise(spec), requantizer_),
        transform_(weights_.depth(), raise(spec)) {}

  // Whether the operands fit, and the epilogue is done in vectors.
  bool usable() const { return weights_.fit() && requantizer_.vector(); }

  // Rows of tiles.
  int64_t units(const View& out, int images) const override { return int64_t(images) * tiles_of(out.height, kOutputs); }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    thread_local std::vector<uint8_t> memory;
    thread_local std::vector<uint8_t> beyond;
    // 64: tiles do not fall on the same cache sets
    const size_t tile = size_t(kPositions) * weights_.depth() * Lanes::kCodeBytes + 64;
    const size_t pixel = size_t(weights_.blocks()) * kTileChannels * 2;
    if (memory.size() < tile * kPanelTiles) memory.resize(tile * kPanelTiles);
    if (beyond.size() < pixel) beyond.resize(pixel);
    const Offsets<Algorithm> rows(out.height, in->row), columns(out.width, in->pixel);
    const int across = tiles_of(out.width, kOutputs);
    Place place(first * across, tiles_of(out.height, kOutputs), across);
    Panel panel;
    for (int64_t left = (end - first) * across; left > 0; left -= panel.count) {
      panel.resize(share(left, kPanelTiles, kTilePixels));
      for (int i = 0; i < panel.count; ++i, place.next()) {
        uint8_t* const to = memory.data() + i * tile;
        panel.transformed[i] = to;
        aim(out, place, beyond.data(), panel.target[i]);
        transform_(in->at(place.image, kApart * place.y - pad_h_, kApart * place.x - pad_w_),
                   rows.of(place.y), columns.of(place.x), to);
      }
      for (int block = 0; block < weights_.blocks(); ++block) multiply(panel, block);
    }
  }

  const char* method() const override { return kBytes ? "avx2 winograd int8" : "avx2 winograd"; }
  int64_t packed_bytes() const override { return weights_.bytes(); }

 private:
  static constexpr int kPositions = Algorithm::kTile * Algorithm::kTile, kCells = Order<Algorithm>::kCells;
  static constexpr int kPanelTiles = Algorithm::kStride == 1 ? 12 : 26;  // transformed at a time
  static constexpr int kOutputs = Algorithm::kOutputs, kPixels = kOutputs * kOutputs;
  static constexpr int kApart = Algorithm::kStride * kOutputs;  // two tiles, in input pixels
  static constexpr bool kBytes = Lanes::kCodeBytes == 1;

  // Added to transformed codes that may be negative.
  static int raise(const ConvSpec& spec) { return kBytes ? 2 * spec.input_high : 0; }

  struct Panel {
    const uint8_t* transformed[kPanelTiles];
    uint8_t* target[kPanelTiles][kPixels];  // output pixels; beyond the image: a place nobody reads
    int count = 0;
    int groups = 0, first[kPanelTiles];  // of tiles in registers together: the first of each, and the end

    void resize(int tiles) {
      if (count == tiles) return;
      count = tiles, groups = 0;
      for (int i = 0; i < tiles; i += share(tiles - i, kTilePixels)) first[groups++] = i;
      first[groups] = tiles;
    }
  };

  static void aim(const View& out, const Place& place, uint8_t* beyond, uint8_t** target) {
    const int y = kOutputs * place.y, x = kOutputs * place.x;
    uint8_t* row = out.at(place.image, y, x);
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i, row += out.row)
#pragma GCC unroll 4
      for (int k = 0; k < kOutputs; ++k)
        *target++ = y + i < out.height && x + k < out.width ? row + k * out.pixel : beyond;
  }

  void multiply(const Panel& panel, int block) const {
    alignas(32) int32_t sums[kPanelTiles][kCells][kTileChannels];
    for (int cell = 0; cell < kCells; ++cell) {
      const Run whole{0, weights_.steps(cell), true};
      Factors factors = weights_.factors(block, cell, whole);
      for (int group = 0; group < panel.groups; ++group) {
        const int i = panel.first[group], end = panel.first[group + 1];
        fetch(weights_.of(block, cell), weights_.of(block, cell + 1), i, end, panel.count);
        factors.pixels = panel.transformed + i;
        int32_t* const to = sums[i][cell];
        switch (end - i) {
          case 1: tiles<1>(factors, to); break;
          case 2: tiles<2>(factors, to); break;
          case 3: tiles<3>(factors, to); break;
          case 4: tiles<4>(factors, to); break;
          case 5: tiles<5>(factors, to); break;
          default: tiles<6>(factors, to);
        }
      }
    }
    for (int i = 0; i < panel.count; ++i) finish(panel.target[i], block, sums[i]);
  }


  // Asks for as many weights as these tiles work on, from `next` on: large layers read them from beyond the cache.
  void fetch(const int8_t* here, const int8_t* next, int first, int last, int tiles) const {
    if (packed_bytes() <= kCacheBytes) return;
    const std::ptrdiff_t bytes = next - here;
    const int8_t* const stop = std::min(weights_.end(), next + bytes * last / tiles);
    for (next += bytes * first / tiles; next < stop; next += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
  }

  template <int Tiles>
  static void tiles(const Factors& factors, int32_t* sums) {
    if constexpr (!kBytes) tiles<Kind::kWide, Tiles>(factors, sums);
    else if (factors.end - factors.run == 1) tiles<Kind::kWhole, Tiles>(factors, sums);
    else tiles<Kind::kBlocks, Tiles>(factors, sums);
  }

  template <Kind kind, int Tiles>
  static void tiles(const Factors& factors, int32_t* sums) {
    asm volatile("" : "+r"(sums));  // gcc would share addresses among the numbers of tiles, and has no registers for them
    __m256i acc[Tiles][2];
    accumulate<kind, Tiles, 2>(factors, acc);
#pragma GCC unroll 6
    for (int i = 0; i < Tiles; ++i)
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) store(sums + i * kCells * kTileChannels + 8 * h, acc[i][h]);
  }

  void finish(uint8_t* const* targets, int block, const int32_t (&sums)[kCells][kTileChannels]) const {
    __m256i acc[kPixels][2];
    transform_output<Algorithm>(sums, acc);
    const int channel = block * kTileChannels, count = std::min(kTileChannels, outputs_ - channel);
    const std::ptrdiff_t to = std::ptrdiff_t(channel) * (requantizer_.wide() ? 2 : 1);
    if constexpr (kPixels == 4) requantizer_.store_tile<4, 2>(targets, to, channel, count, acc);
    else
#pragma GCC unroll 1
      for (int k = 0; k < kPixels; k += 4) {
        __m256i four[4][2];
        std::memcpy(four, acc + k, sizeof four);
        requantizer_.store_tile<4, 2>(targets + k, to, channel, count, four);
      }
  }

  int pad_h_, pad_w_, outputs_;
  Requantizer requantizer_;
  WinogradWeights<Algorithm, Lanes> weights_;
  InputTransform<Algorithm, Lanes> transform_;
};

template <typename Algorithm, typename Lanes>
OpPointer make(const ConvSpec& spec) {
  if (spec.bound() > INT32_MAX >> Algorithm::kDoublings) return nullptr;
  auto op = std::make_unique<Winograd<Algorithm, Lanes>>(spec);
  return op->usable() ? std::move(op) : nullptr;
}

template <typename Lanes>
OpPointer make(const ConvSpec& spec) {
  if (spec.stride_h == 1) return make<StrideOne, Lanes>(spec);
  return make<StrideTwo, Lanes>(spec);
}

OpPointer near(OpPointer op, int64_t bytes) { return op && op->packed_bytes() <= bytes ? std::move(op) : nullptr; }

// Whether tiles of four by four outputs take fewer multiplications than those of two by two, by a tenth at least: not where
// many of their outputs lie beyond the image.
bool fours_pay(const ConvSpec& s) {
  const auto positions = [&](int outputs, int tile) {
    const auto tiles = [&](int size) { return (size + outputs - 1) / outputs; };
    return int64_t(tiles(s.out_height())) * tiles(s.out_width()) * tile * tile;
  };
  return 10 * positions(StrideTwoFour::kOutputs, StrideTwoFour::kTile) <= 9 * positions(StrideTwo::kOutputs, StrideTwo::kTile);
}

}  // namespace

OpPointer make_winograd(const ConvSpec& s, double steps_a_block) {
  const bool fits = s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == s.stride_w && s.stride_h <= 2 &&
                    s.dilation_h == 1 && s.dilation_w == 1 && s.groups == 1;
  // Few channels: the transforms cost more than they save.
  if (!fits || s.in_channels < 12 || s.out_channels < 12) return nullptr;
  if (steps_a_block > 8 && s.in_channels < 32) return nullptr;
  if (s.weight_bits <= 6 && s.input_high < 64)
    if (OpPointer op = make<Bytes>(s)) return op;
  // The saving is smaller for stride 2, and where direct int8 sums go on for many steps. It is lost where the weights, more
  // than twice the direct ones, do not stay near.
  if (s.stride_h == 2) {
    if (steps_a_block > 2.5) return nullptr;
    if (fours_pay(s))
      if (OpPointer op = near(make<StrideTwoFour, Words>(s), kNearBytes)) return op;
    return near(make<StrideTwo, Words>(s), kNearBytes);
  }
  return near(make<Words>(s), steps_a_block > 4 ? 2 * kNearBytes : INT64_MAX);
}

}  // namespace haq::avx2
