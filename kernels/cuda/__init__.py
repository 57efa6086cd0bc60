"""Arguments of the CUDA kernels: per op one function from the op's arguments to the C struct."""
