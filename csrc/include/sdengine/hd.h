// SDE_HD marks a function that compiles for the host and, under nvcc, for the device too.
#pragma once

#if defined(__CUDACC__)
#define SDE_HD __host__ __device__
#else
#define SDE_HD
#endif
