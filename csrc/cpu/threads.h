// How many threads a parallel region may ask for: every region of the engine (cpu/parallel.h) asks here.
#pragma once

namespace fastsmc::cpu {

// OpenMP's number, or as many as the system lets start, where that is fewer; and one in a forked child: the threads of
// libgomp's pool do not survive a fork, and a child that waits for them waits for ever.
int available_threads();

}  // namespace fastsmc::cpu
