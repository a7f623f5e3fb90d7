"""The block of the host twin does late what a device may do late, and finds what a device would not say."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "csrc"
COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None or not SOURCES.exists(), reason="there is no g++, or are no sources")

PROGRAM = r"""
#include <cmath>
#include <cstdio>

#include "cuda/collectives.h"

using namespace fastsmc::cuda;

constexpr int kItems = 3;
constexpr int64_t kTile = 64 * kItems;

template <class Body>
struct Kernel {
  Body body;
  size_t bytes;
  static constexpr int kThreads = 64;
  size_t shared_bytes() const { return bytes; }
  template <class Block>
  void operator()(Block& block) const {
    body(block);
  }
};

template <class Body>
void show(const char* name, const Body& body) {
  try {
    launch(Kernel<Body>{body, kScratch + shared_size<float>(8)}, 1, nullptr);
  } catch (const std::logic_error& error) {
    printf("%s: %s\n", name, error.what());
  }
}

alignas(16) float source[8] = {1, 2, 3, 4, 5, 6, 7, 8};

int main() {
  show("collectives", [](auto& block) {
    using Block = std::decay_t<decltype(block)>;
    void* const scratch = take_scratch(block);
    typename Block::template Private<int64_t> p;
    typename Block::template Private<Items<int64_t, kItems>> items;
    block.each([&](int thread) {
      p[thread] = thread;
      for (int k = 0; k < kItems; ++k) items[thread][k] = place_in_tile<kItems>(thread, k);
    });
    const int64_t sum = reduce(block, p, int64_t{0}, Sum{}, scratch);
    const int64_t largest = reduce(block, p, int64_t{0}, Largest{}, scratch);
    const int64_t total = scan_tile(block, items, scratch);
    bool right = total == kTile * (kTile - 1) / 2;
    block.each([&](int thread) {
      for (int64_t k = 0; k < kItems; ++k) {
        const int64_t i = place_in_tile<kItems>(thread, static_cast<int>(k));
        right &= items[thread][static_cast<int>(k)] == i * (i + 1) / 2;
      }
    });
    printf("collectives: %d %d %d\n", static_cast<int>(sum), static_cast<int>(largest), right);
  });
  show("copies", [](auto& block) {
    float* const to = block.template shared<float>(8);
    block.each([&](int thread) {
      if (thread < 2) block.copy_async(to + 4 * thread, source + 4 * thread, 16);
    });
    block.copy_commit();
    block.each([&](int thread) {
      if (thread == 0) block.copy_async(to, source + 4, 4);
    });
    block.copy_commit();
    const bool nothing = std::isnan(to[0]) && std::isnan(to[7]);
    block.template copy_wait<1>();
    const float first = to[0], last = to[7];
    block.template copy_wait<0>();
    printf("copies: %d %g %g %g\n", nothing, first, last, to[0]);
  });
  show("misaligned", [](auto& block) { block.copy_async(block.template shared<float>(8), source + 1, 16); });
  show("too much", [](auto& block) { block.template shared<float>(1000); });
  show("differ", [](auto& block) {
    typename std::decay_t<decltype(block)>::template Private<int> p;
    block.each([&](int thread) { p[thread] = thread / 63; });
    block.uniform(p);
  });
}
"""

EXPECTED = """\
collectives: 2016 63 1
copies: 1 1 8 5
misaligned: an asynchronous copy is of 4, 8 or 16 aligned bytes
too much: a kernel takes more shared memory than it asked for
differ: threads differ where all are alike
"""


def test_the_block_of_the_host_twin(tmp_path):
    source, program = tmp_path / "block.cpp", tmp_path / "block"
    source.write_text(PROGRAM)
    subprocess.run([COMPILER, "-std=c++17", "-Wall", f"-I{SOURCES}", source, "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == EXPECTED
