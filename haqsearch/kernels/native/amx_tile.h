// Tiles of AMX: up to 16 windows x 64 bytes, times 64 bytes x 16 channels, into int32 of windows x channels.
//
// A multiplication takes as many cycles as it has windows, whatever part of the 64 bytes is used. Loading a row that
// crosses a cache line costs six times one that does not, and is what would bound these kernels.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace haq::amx {

inline constexpr int kRows = 16, kBytes = 64, kChannels = 16;

// 64 weights of each of 16 output channels.
struct alignas(64) Weights {
  int8_t value[kBytes / 4][kChannels][4];
};

// Loading a tile is no reading of memory as gcc sees it: nothing may be moved across.
inline void barrier() { asm volatile("" ::: "memory"); }

// The shapes of the tiles: 0 to 3 accumulate, 4 and 5 hold windows, 6 and 7 weights. A thread's state: whoever has it
// gives it back, because torch's kernels set their own.
class Configuration {
 public:
  Configuration() = default;
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
  ~Configuration() {
    if (rows_) _tile_release();
  }

  // `bytes` of a piece, a multiple of 4.
  void set(int rows, int bytes) {
    if (rows == rows_ && bytes == bytes_) return;
    rows_ = rows, bytes_ = bytes;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? bytes : kBytes);
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : bytes / 4);
    }
    asm volatile("" ::"r"(&shapes) : "memory");  // all of it is written before the next line, which names 8 bytes
    _tile_loadconfig(&shapes);
  }

 private:
  int rows_ = 0, bytes_ = 0;
};

// Where the pieces of a window lie, and how far one window is from the next of a tile.
struct Pieces {
  const std::ptrdiff_t* places;
  int count;
  std::ptrdiff_t pitch;
};

// Tiles of windows that begin at from[0], from[1] .. times Blocks * 16 channels -> out[window][block][16].
template <int Tiles, int Blocks>
void multiply(const uint8_t* const* from, int rows, const Pieces& pieces, const Weights* weight, int32_t* out) {
  static_assert(Blocks == 1 ? Tiles <= 4 : Blocks == 2 && Tiles <= 2);
  const std::ptrdiff_t pitch = pieces.pitch;
  barrier();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0; i < pieces.count; ++i, weight += Blocks) {
    const std::ptrdiff_t place = pieces.places[i];
    _tile_loadd(6, weight, 64);
    _tile_loadd(4, from[0] + place, pitch);
    _tile_dpbusd(0, 4, 6);
    if constexpr (Blocks == 2) {
      _tile_loadd(7, weight + 1, 64);
      _tile_dpbusd(1, 4, 7);
      if constexpr (Tiles == 2) {
        _tile_loadd(5, from[1] + place, pitch);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
      }
    } else {
      if constexpr (Tiles > 1) {
        _tile_loadd(5, from[1] + place, pitch);
        _tile_dpbusd(1, 5, 6);
      }
      if constexpr (Tiles > 2) {
        _tile_loadd(4, from[2] + place, pitch);
        _tile_dpbusd(2, 4, 6);
      }
      if constexpr (Tiles > 3) {
        _tile_loadd(5, from[3] + place, pitch);
        _tile_dpbusd(3, 5, 6);
      }
    }
  }
  const std::ptrdiff_t step = Blocks * kChannels * 4;
  const auto at = [&](int tile, int block) { return out + (tile * rows * Blocks + block) * kChannels; };
  _tile_stored(0, at(0, 0), step);
  if constexpr (Blocks == 2) {
    _tile_stored(1, at(0, 1), step);
    if constexpr (Tiles == 2) {
      _tile_stored(2, at(1, 0), step);
      _tile_stored(3, at(1, 1), step);
    }
  } else {
    if constexpr (Tiles > 1) _tile_stored(1, at(1, 0), step);
    if constexpr (Tiles > 2) _tile_stored(2, at(2, 0), step);
    if constexpr (Tiles > 3) _tile_stored(3, at(3, 0), step);
  }
  barrier();
}

}  // namespace haq::amx
