// SDE_HD marks functions that the CPU and the GPU build compile from the same text.
#pragma once

#if defined(__CUDACC__)
#define SDE_HD __host__ __device__
#else
#define SDE_HD
#endif
