// Subnormal numbers as they are and rounding to nearest, on this thread, for as long as the object is there: torch and
// XLA can have them flushed to zero on threads of theirs, and threads that start there inherit it. For the host.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#else
#include <cfenv>
#endif

namespace fastsmc {

class PlainFloats {
 public:
  PlainFloats(const PlainFloats&) = delete;
  PlainFloats& operator=(const PlainFloats&) = delete;

#if defined(__SSE2__)
  PlainFloats() : before_(_mm_getcsr()) { set(kPlain | (before_ & kFlags)); }
  ~PlainFloats() { set(before_); }

 private:
  static constexpr unsigned kPlain = 0x1F80, kFlags = 0x3F;  // of MXCSR: what it is at first, and what has happened

  static void set(unsigned state) {
    if ((state ^ _mm_getcsr()) & ~kFlags) _mm_setcsr(state);
  }
  unsigned before_;
#else
  PlainFloats() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~PlainFloats() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
#endif
};

}  // namespace fastsmc
