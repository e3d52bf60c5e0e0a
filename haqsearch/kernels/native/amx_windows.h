// The windows of a convolution as tiles load them: where they lie in the input already, or copied beside each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "amx_copy.h"
#include "amx_tile.h"
#include "lines.h"
#include "op.h"

namespace haq::amx {

// Some windows, in tiles of `rows`; the last tile may have windows that `to` leaves out: nobody wants their sums.
struct Windows {
  int rows = 0;
  std::vector<const uint8_t*> from;  // the first window of each tile
  std::vector<uint8_t*> to;          // where the codes of each window go

  int tiles() const { return static_cast<int>(from.size()); }
  int count() const { return static_cast<int>(to.size()); }

  // Windows beside each other.
  void add(uint8_t* first, std::ptrdiff_t pixel, int count) {
    const size_t before = to.size();
    to.resize(before + count);
    for (int i = 0; i < count; ++i) to[before + i] = first + i * pixel;
  }
};

inline int tiles_of(int windows) { return (windows + kRows - 1) / kRows; }
// As many rows for each tile: 49 windows are four tiles of 13.
inline int rows_of(int windows) { return windows ? (windows + tiles_of(windows) - 1) / tiles_of(windows) : 0; }

// Calls use(windows, pieces) until the windows of all units [first, end) were there.
class Feeder {
 public:
  // `packed`: bytes of the weights.
  Feeder(const ConvSpec& s, const Cut& cut, int64_t packed)
      : s_(s), cut_(cut), copied_(std::clamp<int64_t>(packed / 8, 1 << 14, 1 << 17)) {
    s_.weight.clear();
  }

  template <typename Use>
  void feed(const View& in, const View& out, int64_t first, int64_t end, const Use& use) const {
    const Lines lines(s_, in, out, end - first);
    if (in_place(lines, in)) as_it_lies(lines, in, out, first, use);
    else if (s_.kernel_h == 1) copied(in, out, first, end, use);
    else copied_by_rows(in, out, first, end, use);
  }

 private:
  static constexpr int kWindows = 512;  // together, at most

  bool in_place(const Lines& lines, const View& in) const {
    if (!dense(in))
      for (int i = 0; i < cut_.count; ++i)  // every piece within a tap
        if (cut_.begin(i) / s_.in_channels != (cut_.begin(i) + cut_.bytes - 1) / s_.in_channels) return false;
    const std::ptrdiff_t pitch = s_.stride_w * in.pixel;
    const double crosses = crossing(cut_, reinterpret_cast<std::uintptr_t>(in.at(0, -s_.pad_h, -s_.pad_w)), pitch);
    // Cycles for a window, as measured. A multiplication takes one for 16 channels, but 16 for as few rows as 8; loading a
    // tile takes half of one for each row, and 2.5 more where it crosses a cache line; copying 64 bytes 3.5.
    const double blocks = (s_.out_channels + kChannels - 1) / kChannels, pairs = std::ceil(blocks / 2);
    const double rows = rows_of(lines.length), multiply = rows < 12 ? blocks * kRows / rows : blocks;
    const double load = pairs * (0.5 + 2.5 * crosses + kRows / rows / 2);
    const double strip = strip_rows(lines.length), again = ((strip - 1) * s_.stride_h + s_.kernel_h) / strip;
    return s_.kernel_h * std::max(multiply, load) <= s_.kernel_h * blocks + 3.5 * std::min<double>(s_.kernel_h, again);
  }

  // Output rows for which input rows are copied together.
  int64_t strip_rows(int width) const {
    const int64_t row = int64_t(width) * cut_.count * kBytes, reach = (s_.kernel_h - 1) * s_.dilation_h;
    return std::max<int64_t>((copied_ / row - reach) / s_.stride_h, 2 * kRows / width + 1);
  }

  bool dense(const View& in) const { return s_.dilation_w == 1 && in.pixel == s_.in_channels; }

  template <typename Use>
  void as_it_lies(const Lines& lines, const View& in, const View& out, int64_t first, const Use& use) const {
    std::vector<std::ptrdiff_t> places;
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      for (int i = 0; i < cut_.count; ++i) {
        const int begin = cut_.begin(i), tap = dense(in) ? 0 : begin / s_.in_channels;
        places.push_back(ky * s_.dilation_h * in.row + tap * (s_.dilation_w * in.pixel - s_.in_channels) + begin);
      }
    const Pieces pieces{places.data(), static_cast<int>(places.size()), s_.stride_w * in.pixel};
    Windows windows;
    windows.rows = rows_of(lines.length);
    const auto flush = [&] {
      if (windows.tiles()) use(windows, pieces);
      windows.from.clear(), windows.to.clear();
    };
    for (int64_t line = first; line < first + lines.count; ++line) {
      const int64_t image = line / out.height;
      const int y = static_cast<int>(line % out.height);
      const uint8_t* from = in.at(image, y * s_.stride_h - s_.pad_h, -s_.pad_w);
      uint8_t* to = out.at(image, y, 0);
      for (int x = 0; x < lines.length; x += windows.rows) {
        const int start = std::min(x, lines.length - windows.rows);  // the last tile overlaps the one before it
        windows.from.push_back(from + start * pieces.pitch);
        windows.add(to + start * out.pixel, out.pixel, windows.rows);
        if (windows.count() > kWindows - kRows) flush();
      }
    }
    flush();
  }

  // Windows of kernels of one row, of whatever rows and images.
  template <typename Use>
  void copied(const View& in, const View& out, int64_t first, int64_t end, const Use& use) const {
    const int64_t size = cut_.count * kBytes, some = std::clamp<int64_t>(copied_ / size, 2 * kRows, kWindows) / kRows * kRows;
    const int most = static_cast<int>(std::min((end - first) * out.width, some));
    Copy copy(s_, cut_, in, (most + kRows) * size);
    const std::vector<std::ptrdiff_t> places = places_in(copy, {0});
    Windows windows;
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / out.height;
      const int y = static_cast<int>(unit % out.height);
      const uint8_t* from = in.at(image, y * s_.stride_h - s_.pad_h, -s_.pad_w);
      for (int x = 0, count; x < out.width; x += count) {
        count = std::min(out.width - x, most - windows.count());
        copy.windows(from + x * s_.stride_w * in.pixel, copy.data() + windows.count() * size, count);
        windows.add(out.at(image, y, x), out.pixel, count);
        if (windows.count() == most) use_copies(windows, copy, places, use);
      }
    }
    use_copies(windows, copy, places, use);
  }

  // A strip of output rows of an image after the other. Of each input row the kernel rows that lie in it; input rows
  // that the same kernel row is of follow each other, so that a tile may have windows of several output rows.
  template <typename Use>
  void copied_by_rows(const View& in, const View& out, int64_t first, int64_t end, const Use& use) const {
    const int reach = (s_.kernel_h - 1) * s_.dilation_h;
    const int64_t row = int64_t(out.width) * cut_.count * kBytes;
    const int64_t fit = strip_rows(out.width), strips = (out.height + fit - 1) / fit;
    const int64_t most = (out.height + strips - 1) / strips;
    const int64_t across = (most + reach / s_.stride_h) * row + kBytes;  // to the rows of the next remainder
    const auto at = [&](int y) { return y % s_.stride_h * across + y / s_.stride_h * row; };
    Copy copy(s_, cut_, in, across * s_.stride_h + kRows * cut_.count * kBytes);
    std::vector<std::ptrdiff_t> rows;
    for (int ky = 0; ky < s_.kernel_h; ++ky) rows.push_back(at(ky * s_.dilation_h));
    const std::vector<std::ptrdiff_t> places = places_in(copy, rows);
    Windows windows;
    for (int64_t unit = first, count; unit < end; unit += count) {
      const int64_t image = unit / out.height;
      const int top = static_cast<int>(unit % out.height);
      count = std::min<int64_t>({most, end - unit, out.height - top});
      for (int y = 0; y <= static_cast<int>(count - 1) * s_.stride_h + reach; ++y)
        if (read(y)) copy.windows(in.at(image, top * s_.stride_h - s_.pad_h + y, -s_.pad_w), copy.data() + at(y), out.width);
      for (int y = 0; y < count; ++y) windows.add(out.at(image, top + y, 0), out.pixel, out.width);
      use_copies(windows, copy, places, use);
    }
  }

  // Whether some kernel row lies in the input rows of y's remainder.
  bool read(int y) const {
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      if ((y - ky * s_.dilation_h) % s_.stride_h == 0) return true;
    return false;
  }

  std::vector<std::ptrdiff_t> places_in(const Copy& copy, const std::vector<std::ptrdiff_t>& rows) const {
    std::vector<std::ptrdiff_t> places;
    for (const std::ptrdiff_t row : rows)
      for (int i = 0; i < cut_.count; ++i) places.push_back(row + copy.place(i));
    return places;
  }

  template <typename Use>
  static void use_copies(Windows& windows, Copy& copy, const std::vector<std::ptrdiff_t>& places, const Use& use) {
    if (!windows.count()) return;
    windows.rows = rows_of(windows.count());
    windows.from.clear();
    const std::ptrdiff_t size = copy.size();
    for (int i = 0; i < windows.count(); i += windows.rows) windows.from.push_back(copy.data() + i * size);
    use(windows, Pieces{places.data(), static_cast<int>(places.size()), size});
    windows.to.clear();
  }

  ConvSpec s_;  // without weights
  Cut cut_;
  int64_t copied_;  // bytes of copies together: they stay in the first-level cache, unless weights are read anew for each
};

}  // namespace haq::amx
