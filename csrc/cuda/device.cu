#include "cuda/block.h"
#include "cuda/ops.h"

namespace fastsmc::cuda {

#if defined(__CUDACC__)

std::string unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("CUDA finds no device: ") + cudaGetErrorString(error);
  return count > 0 ? "" : "CUDA finds no device";
}

std::string device() {
  return "cuda";
}

size_t shared_memory() {
  int device = 0, bytes = 0;
  require(cudaGetDevice(&device));
  require(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<size_t>(bytes);
}

std::string built_with() {
  return "CUDA " + std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + " for " +
         FASTSMC_CUDA_ARCHITECTURES;
}

void run_backwards(bool) {
  throw std::logic_error("only the host twin has an order of threads");
}

#else

void run_backwards(bool whether) {
  backwards = whether;
}

std::string unavailable() {
  return "";
}

std::string device() {
  return "cpu";
}

size_t shared_memory() {
  return 227 << 10;  // of compute capability 9.0
}

std::string built_with() {
  return "host twin";
}

#endif

}  // namespace fastsmc::cuda
